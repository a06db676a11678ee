"""Converted checkpoints give the logits, the prompts and the exits of those they come from."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dyvte.engine.answer import Answerer
from dyvte.engine.model import ModelOptions
from dyvte.engine.openers import open_model
from dyvte.engine.questions import Question
from dyvte.families.base import adapter_for
from llava.conversation import conv_templates
from llava.convert import chat_template, convert, main

TINY, GATES = "playground/tiny/model", "playground/tiny/gates"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(Tiny-LLaVA with its gates in the folder, the same for transformers, and that back in LLaVA's layout)."""
    root = tmp_path_factory.mktemp("converted")
    first, second, third = root / "llava", root / "hf", root / "back"
    shutil.copytree(TINY, first)
    for name in ("gates.json", "gates.safetensors"):
        shutil.copy(f"{GATES}/{name}", first / name)
    description = json.loads((first / "gates.json").read_text())
    description.pop("base_sha256", None)  # the shipped gates are of the folder without gates
    (first / "gates.json").write_text(json.dumps(description))
    convert(str(first), second)
    convert(str(second), third)
    return first, second, third


@pytest.fixture(scope="module")
def chats(folders):
    return [open_model(ModelOptions(str(folder), device="cpu", dtype="float32")) for folder in folders]


def questions():
    picture = Image.open("playground/tiny/example.jpg").convert("RGB")
    wide = picture.resize((90, 40))
    return [
        Question("What digit is red?", [picture]),
        Question("How many digits are there?", [wide]),
        Question("What color is 5? Answer with a word.", [picture]),
    ]


def logits(chat, question):
    """Of the last position, for the words that both vocabularies have."""
    batch = chat.place(chat.batch([chat.prompt(question)], question.images))
    with torch.inference_mode():
        return chat.model(**batch.inputs()).logits[0, -1, :640]


def test_logits_stay_the_same(chats):
    for chat in chats:
        chat.handle.policy = type(chat.handle.policy)(chat.handle.policy.gates, threshold=1)
    for question in questions():
        wanted, *others = (logits(chat, question) for chat in chats)
        for other in others:
            torch.testing.assert_close(other, wanted, rtol=0, atol=1e-5)
    for chat in chats:
        chat.handle.policy = type(chat.handle.policy)(chat.handle.policy.gates, threshold=0.5)


def test_answers_and_exits_stay_the_same(chats):
    results = [Answerer(chat).ask(questions()) for chat in chats]
    wanted = [(answer.text, answer.report.exit_layer) for answer in results[0]]
    assert any(exit_layer is not None for _, exit_layer in wanted)
    for answers in results[1:]:
        assert [(answer.text, answer.report.exit_layer) for answer in answers] == wanted


def test_conversations_of_several_turns_are_tokenized_alike(chats):
    first, second, _ = questions()
    ids = []
    for chat in chats:
        prompt = chat.prompt(Question("And what is blue?", []), history=[(first, "5"), (second, "two")])
        row = chat.batch([prompt], [*first.images, *second.images]).input_ids[0]
        ids.append([int(token) for token in row if token not in (-200, 640)])
    assert ids[0] == ids[1] == ids[2]


def test_the_token_for_images_is_never_the_answer(chats):
    converted = chats[1]
    hidden = torch.randn(1000, adapter_for(converted.model).decoder(converted.model).config.hidden_size)
    scores = converted.model.lm_head(hidden)
    assert scores.shape[1] == 641 and not (scores.argmax(1) == 640).any()


def test_templates_are_written_as_they_are_rendered():
    for name, conversation in conv_templates.items():
        try:
            written = chat_template(conversation)
        except ValueError:
            assert conversation.sep_style.name in ("PLAIN", "LLAMA_2") or conversation.messages, name
            continue
        from jinja2 import Environment

        messages = [("user", "What?"), ("assistant", "This."), ("user", "Why?")]
        rendered = (
            Environment(autoescape=False)
            .from_string(written)
            .render(  # noqa: S701 - a prompt, not a page
                messages=[{"role": role, "content": text} for role, text in messages],
                add_generation_prompt=True,
            )
        )
        conv = conversation.copy()
        for (_, text), role in zip(messages, [*conv.roles, conv.roles[0]], strict=True):
            conv.append_message(role, text)
        conv.append_message(conv.roles[1], None)
        assert rendered == conv.get_prompt(), name


@pytest.mark.parametrize("broken", ["lacks", "infinite"])
def test_weights_of_transformers_layout_are_checked(broken, folders, tmp_path):
    folder = tmp_path / "hf"
    shutil.copytree(folders[1], folder, ignore=shutil.ignore_patterns("gates.*"))  # they know their model
    weights = load_file(folder / "model.safetensors")
    (key,) = [key for key in weights if key.endswith("layers.3.mlp.up_proj.weight")]
    value = weights.pop(key)
    if broken == "infinite":
        weights[key] = torch.full_like(value, torch.inf)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = "lacks 1 of the model's weights" if broken == "lacks" else "not finite"
    with pytest.raises(ValueError, match=message):
        convert(str(folder), tmp_path / "back")
    with pytest.raises(ValueError, match=message):
        open_model(ModelOptions(str(folder), device="cpu"))


def test_refused(folders, tmp_path, capsys):
    def copy_with(name, **fields):
        folder = tmp_path / name
        shutil.copytree(TINY, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))
        return str(folder)

    with pytest.raises(ValueError, match="image_aspect_ratio 'anyres'.*no counterpart"):
        convert(
            copy_with("tiles", image_aspect_ratio="anyres", image_grid_pinpoints=[[72, 144]]), tmp_path / "a"
        )
    with pytest.raises(ValueError, match="unknown conversation template 'v9'"):
        convert(TINY, tmp_path / "a", template="v9")
    with pytest.raises(ValueError, match="LLAMA_2 has no chat template"):
        convert(TINY, tmp_path / "a", template="llava_llama_2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(SystemExit, match="full holds files already: name a new folder"):
        main([TINY, str(tmp_path / "full")])
    assert (tmp_path / "full" / "file").read_text() == "mine"
    assert not (tmp_path / "a").exists()
