"""Question files to answer files: order, resuming, batches, and what bad input does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image

from dyvte import ExitGates, LearnedExit
from dyvte.engine.answers_file import AnswersFile
from dyvte.engine.marker import read_run
from dyvte.engine.model import Generation
from dyvte.engine.options import open_answerer
from dyvte.engine.questions import Question, item_of, prepare
from llava.eval import model_vqa, model_vqa_loader
from llava.eval.model_vqa_loader import build_parser, eval_model, get_chunk, split_list

KEYS = {
    "exit_layer",
    "tokens_per_layer",
    "tflops",
    "decoder_tflops",
    "kv_bytes",
    "seconds",
    "prompt_tokens",
    "visual_tokens",
    "exit_probabilities",
    "full_decoder_tflops",
    "run",
    "version",
}
COUNT = 7


@pytest.fixture
def run_loader(checkpoint, tmp_path):
    """A function that runs the loader on seven questions; it returns the lines of the answers file."""
    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for index in range(COUNT):
        Image.new("RGB", (20 + 9 * index, 30), (30 * index, 99, 200 - 20 * index)).save(
            images / f"{index}.png"
        )
        text = "What colour is the ball?" + " red" * index
        rows.append(
            {"question_id": f"q{index}", "image": f"{index}.png", "text": text, "category": "default"}
        )
    del rows[3]["image"]

    def run(name="answers.jsonl", rows=rows, parser=None, **options):
        questions = tmp_path / "questions.jsonl"
        if rows is not None:
            questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {
            "model_path": checkpoint,
            "image_folder": images,
            "question_file": questions,
            "answers_file": tmp_path / name,
            "conv_mode": "vicuna_v1",
            "temperature": 0,
            "max_new_tokens": 4,
        } | options
        flags = {"top_p": "_", "num_beams": "_", "max_new_tokens": "_"}
        argv = []
        for key, value in given.items():
            argv += [f"--{key.replace('_', flags.get(key, '-'))}", str(value)]
        eval_model((parser or build_parser()).parse_args(argv))
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    run.rows, run.folder = rows, tmp_path
    return run


def essence(answers):
    """What must not depend on how a run was cut into batches or processes."""
    return [
        (a["question_id"], a["text"], {k: v for k, v in a["metadata"].items() if k != "seconds"})
        for a in answers
    ]


def test_rows_in_order(run_loader):
    answers = run_loader()
    assert [answer["question_id"] for answer in answers] == [row["question_id"] for row in run_loader.rows]
    assert [answer["prompt"] for answer in answers] == [row["text"] for row in run_loader.rows]
    assert {answer["model_id"] for answer in answers} == {"llava-v1.5-tiny"}
    assert len({answer["answer_id"] for answer in answers}) == COUNT
    for index, answer in enumerate(answers):
        metadata = answer["metadata"]
        assert set(metadata) == KEYS and metadata["exit_layer"] is None and metadata["seconds"] > 0
        assert metadata["visual_tokens"] == (0 if index == 3 else 4)
        assert metadata["tokens_per_layer"] == [metadata["prompt_tokens"]] * 3
        assert metadata["tflops"] >= metadata["decoder_tflops"] > 0
    assert answers[0]["metadata"]["tflops"] > answers[0]["metadata"]["decoder_tflops"]
    assert answers[3]["metadata"]["tflops"] == answers[3]["metadata"]["decoder_tflops"]


def test_batches_change_nothing(run_loader):
    one = essence(run_loader())
    assert essence(run_loader("three.jsonl", batch_size=3)) == one
    assert essence(run_loader("all.jsonl", batch_size=50)) == one


def test_workers_change_nothing(run_loader):
    """Answers and their order, and a run goes on with another number of them."""
    one = essence(run_loader(workers=0))
    assert essence(run_loader("three.jsonl", workers=3, batch_size=2)) == one
    path = run_loader.folder / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    resumed = run_loader(workers=4)
    assert [a["answer_id"] for a in resumed[:3]] == [json.loads(line)["answer_id"] for line in lines[:3]]
    assert essence(resumed) == one


def test_fixed_exit(run_loader):
    for answer in run_loader(method="fixed", exit_layer=0, batch_size=4):
        metadata = answer["metadata"]
        visual = metadata["visual_tokens"]
        assert metadata["exit_layer"] == (0 if visual else None)
        rest = metadata["prompt_tokens"] - visual
        assert metadata["tokens_per_layer"] == [metadata["prompt_tokens"], rest, rest]


def test_learned_exit_and_its_threshold(run_loader, tmp_path):
    ExitGates(3, 32, width=8).save_pretrained(tmp_path / "gates")
    always = run_loader(gates=tmp_path / "gates", threshold=0)
    assert {answer["metadata"]["exit_layer"] for answer in always} == {0, None}
    never = run_loader("never.jsonl", method="dyvte", gates=tmp_path / "gates", threshold=1)
    assert {answer["metadata"]["exit_layer"] for answer in never} == {None}
    # gates that were asked cost something: three of 2 x (64 x 8 + 8 x 2) FLOPs
    asked, baseline = never[0]["metadata"], run_loader("baseline.jsonl")[0]["metadata"]
    for cost in ("tflops", "decoder_tflops"):
        assert asked[cost] - baseline[cost] == pytest.approx(3 * 2 * (64 * 8 + 8 * 2) / 1e12)


def test_resuming_keeps_answers(run_loader):
    full = run_loader()
    path = run_loader.folder / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # cut in the middle of a line
    again = run_loader()
    assert [a["answer_id"] for a in again[:3]] == [a["answer_id"] for a in full[:3]]
    assert not {a["answer_id"] for a in again[3:]} & {a["answer_id"] for a in full}
    assert essence(again) == essence(full)
    untouched = run_loader()
    assert untouched == again


def test_other_settings_start_anew(run_loader):
    full = run_loader()
    assert run_loader(max_new_tokens=2)[0]["answer_id"] != full[0]["answer_id"]
    second = run_loader()
    rows = [dict(row, text=row["text"] + " again") for row in run_loader.rows]
    changed = run_loader(rows=rows)
    assert changed[0]["answer_id"] != second[0]["answer_id"] and changed[0]["prompt"].endswith("again")


def set_aside(folder, name="answers"):
    """Files that were moved aside, oldest name first."""
    return sorted(folder.glob(f"{name}.*-*.jsonl"))


@pytest.mark.parametrize("marker_content", [None, "", "{"])
def test_answers_of_unknown_origin_are_kept_under_another_name(run_loader, marker_content):
    """Without the run's marker (files copied without hidden ones), nobody knows which method gave the answers."""
    full = run_loader()
    path, marker = run_loader.folder / "answers.jsonl", run_loader.folder / ".answers.jsonl.run"
    before = path.read_bytes()
    marker.unlink()
    if marker_content is not None:
        marker.write_text(marker_content)
    assert not {a["answer_id"] for a in run_loader()} & {a["answer_id"] for a in full}
    (kept,) = set_aside(run_loader.folder)
    assert kept.read_bytes() == before and kept.stem.endswith("-unknown")


@pytest.mark.parametrize(
    "typo",
    [
        {"gates": "playground/gats"},
        {"conv_mode": "vicuna_v9"},
        {"model_path": "playground/modl/x"},
        {"method": "fixed", "exit_layer": 99},
        {"image_folder": "nowhere"},
    ],
)
def test_a_typo_destroys_no_answers(run_loader, typo):
    run_loader()
    before = (run_loader.folder / "answers.jsonl").read_bytes()
    with pytest.raises((ValueError, OSError)):
        run_loader(**typo)
    assert (run_loader.folder / "answers.jsonl").read_bytes() == before
    assert not set_aside(run_loader.folder)


def test_answers_of_another_run_get_its_name(run_loader, caplog):
    run_loader()
    before = (run_loader.folder / "answers.jsonl").read_bytes()
    run = read_run(run_loader.folder / "answers.jsonl")
    run_loader(max_new_tokens=2)
    (kept,) = set_aside(run_loader.folder)
    assert kept.read_bytes() == before and kept.stem.endswith(f"-{run.short_name}")
    assert read_run(kept) == run
    assert f"held answers of another run (max_new_tokens differ), which are now {kept}" in caplog.text


def test_the_broken_weights_of_another_run_destroy_no_answers(run_loader, copy_of):
    """The model is loaded before anything is moved."""
    run_loader()
    before = (run_loader.folder / "answers.jsonl").read_bytes()
    with pytest.raises((ValueError, OSError)):
        run_loader(model_path=copy_of("llava-v1.5-tiny"))
    assert (run_loader.folder / "answers.jsonl").read_bytes() == before and not set_aside(run_loader.folder)


def test_what_changes_no_answer_keeps_them(run_loader, checkpoint, tmp_path, monkeypatch):
    """A harmless new file in the folders of model and gates, and another spelling of any path."""
    model = shutil.copytree(checkpoint, tmp_path / "llava-v1.5-tiny")
    ExitGates(3, 32, width=8).save_pretrained(tmp_path / "gates")
    first = run_loader(model_path=model, gates=tmp_path / "gates")
    for folder in ("gates", "llava-v1.5-tiny"):
        (tmp_path / folder / "README.md").write_text("notes")
        (tmp_path / folder / "trainer_state.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    again = run_loader(
        model_path="~/llava-v1.5-tiny", gates="~/gates/../gates/", image_folder=f"{tmp_path}/./images"
    )
    assert again == first
    ((tmp_path / "gates") / "gates.json").touch()
    os.utime(model / "config.json", (1, 1))
    assert run_loader(model_path=model, gates=tmp_path / "gates") == first


@pytest.mark.parametrize("changed", ["vision_tower/config.json", "generation_config.json", "gates.json"])
def test_all_that_is_loaded_counts(run_loader, checkpoint, tmp_path, changed):
    model = shutil.copytree(checkpoint, tmp_path / "llava-v1.5-tiny")
    ExitGates(3, 32, width=8).save_pretrained(tmp_path / "gates")
    first = run_loader(model_path=model, gates=tmp_path / "gates")
    file = (tmp_path / "gates" if changed == "gates.json" else model) / changed
    described = json.loads(file.read_text())
    file.write_text(json.dumps(described | {"note": "another"}))
    again = run_loader(model_path=model, gates=tmp_path / "gates")
    assert again[0]["answer_id"] != first[0]["answer_id"] and len(set_aside(tmp_path)) == 1


def test_questions_are_not_overwritten_with_answers(run_loader, tmp_path):
    run_loader()
    questions = tmp_path / "questions.jsonl"
    before = questions.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(questions)
    for name in ("questions.jsonl", "link.jsonl"):
        with pytest.raises(ValueError, match="--answers-file and --question-file are the same file"):
            run_loader(name)
    assert questions.read_bytes() == before


def test_killed_and_resumed(run_loader, checkpoint, tmp_path):
    expected = essence(run_loader("whole.jsonl", max_new_tokens=3))
    answers = tmp_path / "killed.jsonl"
    dying = (
        "import os, signal, dyvte.engine.answer as a\n"
        "old, calls = a.Answerer.complete, []\n"
        "def new(*args, **kwargs):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return old(*args, **kwargs)\n"
        "a.Answerer.complete = new\nfrom llava.eval.model_vqa_loader import *\nfrom dyvte.cli import run\n"
        "run(build_parser(), eval_model)"
    )
    command = [
        sys.executable,
        "-c",
        dying,
        "--model-path",
        str(checkpoint),
        "--image-folder",
        str(tmp_path / "images"),
        "--question-file",
        str(tmp_path / "questions.jsonl"),
        "--answers-file",
        str(answers),
        "--conv-mode",
        "vicuna_v1",
        "--temperature",
        "0",
        "--max_new_tokens",
        "3",
    ]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = [json.loads(line)["answer_id"] for line in answers.read_text().splitlines()]
    assert 2 <= len(kept) < COUNT
    resumed = run_loader("killed.jsonl", max_new_tokens=3)
    assert [answer["answer_id"] for answer in resumed[: len(kept)]] == kept
    assert essence(resumed) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": ""}, "has no text"),
        ({"text": None}, "has no text"),
        ({"image": "none.png"}, ": image file not found: .*none.png"),
        ({"image": "../images.png"}, ": .*leads out of the image folder"),
        ({"image": 5}, "image must be a file name or a list of file names, not 5"),
        ({"image": [[]]}, r"image must be .*, not \[\[\]\]"),
        ({"image": [None]}, r"image must be .*, not \[None\]"),
        ({"image": {"path": "1.png"}}, "image must be .*, not {'path'"),
        ({"image": "a\0.png"}, "image.*NUL character"),
        ({"image": "\ud83d.png"}, "image holds .*lone surrogate"),
        ({"text": "bad \ud83d"}, "text holds .*lone surrogate"),
        ({"text": 5}, "text must be text, not 5"),
        ({"text": "<image> and <image>?"}, "the text has places for 2 images, but comes with 1"),
        ({"text": "What is <image> in HTML?", "image": None}, "places for 1 images, but comes with 0"),
    ],
)
def test_bad_questions_are_found_before_any_is_asked(run_loader, change, message):
    rows = [dict(row) for row in run_loader.rows]
    rows[4].update(change)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=rf"'q4' \(.*questions.jsonl, line 5\).*{message}"
    ):
        run_loader(rows=rows)
    assert not (run_loader.folder / "answers.jsonl").exists()
    rows[5]["text"] = " "
    with pytest.raises(ValueError, match=rf"'q4' \(.*{message}.*; question 'q5' .*line 6\): it has no text"):
        run_loader(rows=rows)
    rows = [dict(row, text=None) for row in rows]
    with pytest.raises(ValueError, match="'q0'.*'q3'.* more questions cannot be asked"):
        run_loader(rows=rows)


@pytest.mark.parametrize("question_id", [None, [1], {"a": 1}, True, float("nan"), float("inf"), "\ud83d"])
def test_question_ids_are_text_or_numbers(run_loader, question_id):
    with pytest.raises(ValueError, match=r"questions.jsonl, line 2\): question_id"):
        run_loader(rows=[run_loader.rows[0], {**run_loader.rows[1], "question_id": question_id}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question_id": 1, "text": "What?"}'.encode("utf-16"), "questions.jsonl is UTF-16"),
        (b"\xef\xbb\xbf{}", "questions.jsonl is UTF-8 with a byte-order mark"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer"),
        ('{"question_id": 1, "text": "中文"}'.encode("gbk"), "line 1 is not UTF-8"),
        (b"\n" + b'{"a":' * 100_000, "line 2 is not valid JSON .*recursion"),
        (b'{"question_id": ' + b"1" * 5000 + b', "text": "What?"}', "line 1 is not valid JSON .*digits"),
        (b'[{"question_id": 1, "text": "What?"}]', "line 1: not a question but"),
        (b'{"text": "What?"}', "line 1: a question without question_id"),
    ],
)
def test_question_files_that_are_none(run_loader, tmp_path, content, message):
    (tmp_path / "questions.jsonl").write_bytes(content)
    args = build_parser().parse_args(["--question-file", str(tmp_path / "questions.jsonl")])
    args.answers_file = str(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=message) as raised:
        eval_model(args)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000


def test_only_a_line_feed_ends_a_line(run_loader):
    """U+2028, U+2029 and U+0085 may stand in JSON strings as they are."""
    text = "What\u2028colour\u2029is\x85it?"
    path = run_loader.folder / "questions.jsonl"
    lines = [json.dumps({"question_id": i, "text": text}, ensure_ascii=False) for i in range(2)]
    path.write_bytes(("\r\n".join(lines) + "\r\n").encode())
    answers = run_loader(rows=None)
    assert [answer["prompt"] for answer in answers] == [text, text]
    assert run_loader(rows=None) == answers


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_trouble_while_asking_loses_no_answer(run_loader, workers):
    rows = [dict(row) for row in run_loader.rows]
    whole = (run_loader.folder / "images/4.png").read_bytes()
    (run_loader.folder / "images/4.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="'q4'.*cannot read image .*4.png"):
        run_loader(rows=rows, workers=workers)
    kept = (run_loader.folder / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["question_id"] for line in kept] == ["q0", "q1", "q2", "q3"]


def test_every_nth_question_is_asked_alone_too(run_loader):
    answers = run_loader(batch_size=3, verify_every=2)
    asked = [answer["metadata"].pop("batch1_text", None) for answer in answers]
    assert asked == [answer["text"] if i % 2 == 0 else None for i, answer in enumerate(answers)]
    assert essence(answers) == essence(run_loader("plain.jsonl"))


def test_two_runs_do_not_write_one_file(run_loader):
    run_loader()
    items = [item_of(row) for row in run_loader.rows]
    path = run_loader.folder / "answers.jsonl"
    settings = {"threshold": "0.5"}
    with AnswersFile(str(path), settings, "llava-v1.5-tiny", items) as first:
        assert first.kept == 0
        with pytest.raises(ValueError, match="another run is writing .*answers.jsonl"):
            AnswersFile(str(path), settings, "llava-v1.5-tiny", items)
    with AnswersFile(str(path), settings, "llava-v1.5-tiny", items):
        pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_full_disk_and_unwritable_folder_are_one_error(run_loader, tmp_path):
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left.*full.jsonl"):
        run_loader("full.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run_loader("file/answers.jsonl")


def test_bad_arguments(run_loader, tmp_path):
    for options, message in (
        ({"conv_mode": "vicuna_v9"}, "vicuna_v9"),
        ({"batch_size": 0}, "--batch-size"),
        ({"method": "dyvte"}, "needs gates"),
        ({"method": "fixed"}, "--exit-layer"),
        ({"method": "fixed", "exit_layer": 3}, "exit layer 3"),
        ({"method": "none", "gates": tmp_path}, "--gates"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"num_chunks": 2, "chunk_idx": 2}, "--chunk-idx 2"),
    ):
        with pytest.raises(ValueError, match=message):
            run_loader("bad.jsonl", **options)
    with pytest.raises(FileNotFoundError, match="question file not found"):
        run_loader(question_file=tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="line 1"):
        run_loader(rows=[{"text": "no id"}])


def test_chunks(run_loader):
    assert split_list(list(range(7)), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert [get_chunk(list(range(5)), 4, k) for k in range(4)] == [[0, 1], [2, 3], [4], []]
    whole = essence(run_loader("whole.jsonl"))
    pieces = [run_loader(f"{k}.jsonl", num_chunks=5, chunk_idx=k) for k in range(5)]
    assert [len(piece) for piece in pieces] == [2, 2, 2, 1, 0]
    assert essence([answer for piece in pieces for answer in piece]) == whole


def test_beams_and_sampling(run_loader):
    beams = run_loader("beams.jsonl", num_beams=2, batch_size=3, method="fixed", exit_layer=1)
    greedy = run_loader("greedy.jsonl", batch_size=3, method="fixed", exit_layer=1)
    strip = [[a["metadata"] | {"seconds": 0} for a in answers] for answers in (beams, greedy)]
    assert strip[0] == strip[1]
    torch.manual_seed(0)
    assert len(run_loader("sampled.jsonl", temperature=1.0, top_p=0.9)) == COUNT


def test_model_vqa_asks_for_longer_answers(run_loader):
    assert model_vqa.build_parser().parse_args([]).max_new_tokens == 1024
    assert build_parser().parse_args([]).max_new_tokens == 128
    assert model_vqa.eval_model is model_vqa_loader.eval_model


def test_defaults_are_llavas():
    args = vars(build_parser().parse_args([]))
    expected = {
        "model_path": "facebook/opt-350m",
        "model_base": None,
        "image_folder": "",
        "question_file": "tables/question.jsonl",
        "answers_file": "answer.jsonl",
        "conv_mode": "llava_v1",
        "num_chunks": 1,
        "chunk_idx": 0,
        "temperature": 0.2,
        "top_p": None,
        "num_beams": 1,
        "max_new_tokens": 128,
    }
    assert {key: args[key] for key in expected} == expected


def test_several_images_in_one_question(run_loader, checkpoint):
    args = build_parser().parse_args(["--model-path", str(checkpoint), "--max_new_tokens", "2"])
    answerer = open_answerer(args, "vicuna_v1")
    row = {"question_id": 1, "text": "Same?", "image": ["0.png", "1.png"]}
    question = prepare(item_of(row), run_loader.folder / "images")
    assert answerer.chat.user_turn(question) == "<image>\n<image>\nSame?"
    placed = Question("first <image-placeholder>, then <image-placeholder>", question.images)
    assert answerer.chat.user_turn(placed) == "first <image>, then <image>"
    pair, alone = answerer.ask([question, Question("Hello")])
    assert (pair.report.visual_tokens, alone.report.visual_tokens) == (8, 0)
    with pytest.raises(ValueError, match="temperature"):
        Generation(temperature=-1)


def test_the_checkpoints_gates_are_used_unless_told_otherwise(copy_of, weights):
    from safetensors.torch import save_file

    folder = copy_of("merged")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ExitGates(3, 32, width=8).save_pretrained(folder)
    parse = build_parser().parse_args
    given = ["--model-path", str(folder)]
    learned = open_answerer(parse([*given, "--threshold", "0.25"]), "v1")
    assert isinstance(learned.handle.policy, LearnedExit) and learned.handle.policy.threshold == 0.25
    assert learned.exits
    assert not open_answerer(parse([*given, "--method", "none"]), "v1").exits
    with pytest.raises(ValueError, match="CUDA graphs need the whole decoder on one CUDA device"):
        open_answerer(parse([*given, "--device", "cpu", "--cuda-graphs"]), "v1")
    assert learned.handle.graphs is None and learned.handle.run.attention == "sdpa"
    eager = open_answerer(parse([*given, "--attn-implementation", "eager"]), "v1")
    assert eager.handle.run.attention == "eager" and not eager.handle.run.graphs


def test_a_prefill_computes_the_logits_of_the_last_token_only(llava, monkeypatch):
    """`generate` asks for them where the model's signature offers it."""
    from tests.conftest import MIXED, Prompts

    rows = []
    head = llava.lm_head.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
    try:
        llava.generate(**Prompts(MIXED[0]).ours(), do_sample=False, max_new_tokens=2, eos_token_id=None)
    finally:
        head.remove()
    assert rows == [1, 1]
