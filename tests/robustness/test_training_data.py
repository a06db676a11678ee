"""Broken instruction data: every sample can be used, or the file and what is wrong with it are told at the start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPVisionConfig

from dyvte.gates.sample import main as draw_sample
from llava.conversation import conv_templates
from llava.model.builder import load_tokenizer
from llava.train.arguments import DataArguments
from llava.train.dataset import make_supervised_data_module
from tests.robustness.outcome import FEW, MANY, right_or_told

NAMES = ("a.png", "b.png", "sub/c.png")
TEXTS = (
    "<image>\nWhat colour is the ball?",
    "red",
    "How many? <image>",
    "",
    " ",
    "\ud83d",
    "a\u2028b",
    "<image>" * 3,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of images, with a file beside it that no data may reach."""
    folder = tmp_path_factory.mktemp("data")
    for name in NAMES:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (28, 28)).save(folder / "images" / name)
    Image.new("RGB", (28, 28)).save(folder / "secret.png")
    return folder


class Tower:
    """What data asks of a vision tower."""

    config = CLIPVisionConfig(image_size=28, patch_size=14)
    num_patches = 4

    def __init__(self, image_processor) -> None:
        self.image_processor = image_processor


@pytest.fixture(scope="module")
def read(checkpoint, place):
    """A function: the content of a file -> all samples of it, as training reads them."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = load_tokenizer(str(checkpoint))
    tokenizer.model_max_length, tokenizer.pad_token = 128, tokenizer.unk_token
    tower = Tower(CLIPImageProcessorPil.from_pretrained(checkpoint / "vision_tower"))

    def read(content: bytes, name: str = "data.json", template: str = "v1") -> list[dict]:
        path = place / name
        path.write_bytes(content)
        arguments = DataArguments(data_path=str(path), image_folder=str(place / "images"))
        data = make_supervised_data_module(tokenizer, arguments, conv_templates[template], tower)
        dataset = data["train_dataset"]
        return [dataset[index] for index in range(len(dataset))]

    return read


def record(image="a.png", question="<image>\nWhat colour is the ball?", answer="red", **more) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": 1, "image": image, "conversations": turns, **more}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from((*TEXTS, *NAMES)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("from", "value", "x")), inner)
    ),
    max_leaves=6,
)
turns = st.fixed_dictionaries(
    {
        "from": st.sampled_from(("human", "gpt", "system")) | anything,
        "value": st.sampled_from(TEXTS) | anything,
    }
)
records = st.fixed_dictionaries(
    {
        "image": st.sampled_from(
            (*NAMES, "../secret.png", "/etc/passwd", "none.png", "a\0.png", "x" * 5000, "")
        )
        | st.lists(st.sampled_from(NAMES), max_size=3)
        | anything,
        "conversations": st.lists(turns, max_size=4) | anything,
    },
    optional={"id": anything},
)
files = st.lists(records | st.builds(record) | anything, max_size=4)
bytes_changed = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4)


def check_records(content: list, read, template: str) -> None:
    with right_or_told("data.json"):
        assert read(json.dumps(content).encode(), template=template)


def check_bytes(changes: list[tuple[int, int]], read) -> None:
    content = bytearray(json.dumps([record(), record("b.png")]).encode())
    for at, value in changes:
        content[at % len(content)] = value
    with right_or_told("data.json"):
        assert len(read(bytes(content))) == 2


@FEW
@given(files, st.sampled_from(("v1", "plain", "llava_llama_2")))
def test_records_of_any_shape(read, content, template):
    check_records(content, read, template)


@pytest.mark.slow
@MANY
@given(files, st.sampled_from(("v1", "plain", "llava_llama_2")))
def test_records_of_any_shape_by_the_thousand(read, content, template):
    check_records(content, read, template)


@FEW
@given(bytes_changed)
def test_files_with_changed_bytes(read, changes):
    check_bytes(changes, read)


@pytest.mark.slow
@MANY
@given(bytes_changed)
def test_files_with_changed_bytes_by_the_thousand(read, changes):
    check_bytes(changes, read)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4734384\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "Git LFS pointer"),
        (json.dumps([record()]).encode("utf-16"), "UTF-16"),
        (b"\xef\xbb\xbf" + json.dumps([record()]).encode(), "byte-order mark"),
        (json.dumps([record()]).encode() + b"," + b"[" * 100_000, "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'[{"id": ' + b"1" * 5000 + b"}]", "not valid JSON"),
        (json.dumps([record(answer="\ud83d")]).encode(), "sample 1 .*value holds .*lone surrogate"),
        (json.dumps([record(image="\ud83d.png")]).encode(), "image holds .*lone surrogate"),
        (json.dumps([record(image=[["a.png"]])]).encode(), "image must be a file name"),
        (json.dumps([record(image="a\0.png")]).encode(), "image must be a file name"),
        (json.dumps([record(image="x" * 5000)]).encode(), "of 5000 characters, 'x{80}'..., is too long"),
        (json.dumps([record(image="../secret.png")]).encode(), "leads out of the image folder"),
        (json.dumps([record(image="none.png"), record()]).encode(), "1 of 2 samples .*not found: .*none.png"),
        (json.dumps([record(answer="")] * 3).encode(), "none of the 3 samples has a token to learn from"),
        (json.dumps([record(question="<image>" + "ball " * 200)] * 2).encode(), "none of the 2 samples"),
        (json.dumps([{"conversations": [{"from": [], "value": "x"}]}]).encode(), "'from'"),
        (
            json.dumps([{**record(), "conversations": [
                {"from": "gpt", "value": "<image>"}, {"from": "human", "value": "?"}, {"from": "gpt", "value": "red"},
            ]}]).encode(),
            "first turn, which is left out .*holds <image>",
        ),
    ],
    ids=[
        "lfs", "utf-16", "bom", "more behind it", "nested", "long number", "surrogate", "surrogate in a name",
        "list in a list", "nul", "long name", "outside", "missing",
        "empty answers", "cut answers", "from", "skipped turn",
    ],
)  # fmt: skip
def test_what_is_told(content, message, read):
    with pytest.raises((ValueError, OSError), match=f"data.json.*{message}"):
        read(content)


def test_a_sample_on_each_line(read):
    lines = "\n".join(json.dumps(record(answer=f"red\u2028{n}"), ensure_ascii=False) for n in range(3))
    samples = read(lines.encode() + b"\n\n", "data.jsonl")
    assert len(samples) == 3 and samples[0]["input_ids"].tolist() != samples[1]["input_ids"].tolist()
    with pytest.raises(ValueError, match="data.jsonl, line 2 is not valid JSON"):
        read(b'{"id": 1}\n{"id"\n', "data.jsonl")


def test_answers_behind_the_images_count_as_cut(checkpoint, place, read):
    """The model's limit counts an image by its patches, the tokenizer's as one token."""
    from types import SimpleNamespace

    tokenizer = load_tokenizer(str(checkpoint))
    tokenizer.model_max_length = 128
    (place / "data.json").write_text(json.dumps([record()]))
    arguments = DataArguments(data_path=str(place / "data.json"), image_folder=str(place / "images"))
    tower = Tower(SimpleNamespace(crop_size={"height": 28}))
    build = make_supervised_data_module
    length = next(
        limit
        for limit in range(1, 128)
        if _has_targets(build, tokenizer, arguments, tower, SimpleNamespace(tokenizer_model_max_length=limit))
    )
    ids = build(tokenizer, arguments, conv_templates["v1"], tower)["train_dataset"]._tokens(record())
    first = next(index for index, label in enumerate(ids[1]) if label != -100)
    assert length == first + 1 + Tower.num_patches - 1


def _has_targets(build, tokenizer, arguments, tower, config) -> bool:
    try:
        build(tokenizer, arguments, conv_templates["v1"], tower, config)
    except ValueError as error:
        assert "has a token to learn from" in str(error)
        return False
    return True


def test_sample_reads_only_its_folder_and_writes_nowhere_else(place, capsys):
    data = place / "all.json"
    content = json.dumps([record(), record("../secret.png"), record("/etc/passwd"), record(answer="\ud83d")])
    data.write_text(content)
    for more in ((), ("--image-folder", str(place / "images"))):
        draw_sample(["--data-path", str(data), "--output", str(place / "o.json"), "--fraction", "1", *more])
        assert json.loads((place / "o.json").read_text()) == [record()]
    assert json.loads((place / "o.report.json").read_text())["left_out"] == {
        "image outside the image folder": 2,
        "half of a character in the text": 1,
    }
    (place / "link.json").symlink_to(data)
    for output in (data, place / "link.json", place / "images" / ".." / "all.json"):
        with pytest.raises(SystemExit, match="--output and --data-path are the same file"):
            draw_sample(["--data-path", str(data), "--output", str(output)])
    assert data.read_text() == content
