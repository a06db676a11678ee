"""The engine with a model that is not LLaVA: answering, resuming and calibrating need only the interface."""

from __future__ import annotations

import importlib.metadata
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from dyvte import ExitGates, FixedExit, NoExit
from dyvte.decoding.attach import handle_of
from dyvte.engine import calibrate, openers
from dyvte.engine.answer import Answerer
from dyvte.engine.model import Generation, ModelOptions
from dyvte.engine.questions import JSON_LINES, Question
from dyvte.engine.run import answer_items, question_parser
from tests.engine.hf_model import WordsModel, opener_of

COUNT = 6


@pytest.fixture
def words_model(hf_llava, monkeypatch):
    """Make the engine find transformers' model under every path."""
    monkeypatch.setattr(openers, "find_opener", lambda family: opener_of(hf_llava))
    yield hf_llava
    if handle := handle_of(hf_llava):
        handle.detach()


@pytest.fixture
def folder(tmp_path):
    """Images, questions about them, and the same as instruction data."""
    rows, records = [], []
    for index in range(COUNT):
        Image.new("RGB", (28, 28), (40 * index, 99, 255 - 40 * index)).save(tmp_path / f"{index}.png")
        text, image = f"what is number {index}" + " please" * index, f"{index}.png"
        rows.append({"question_id": index, "image": image, "text": text})
        turns = [{"from": "human", "value": "<image>\n" + text}, {"from": "gpt", "value": "a ball"}]
        records.append({"id": index, "image": image, "conversations": turns})
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sample.json").write_text(json.dumps(records))
    return tmp_path


def answers_of(folder, *flags):
    given = ["--model-path", folder, "--image-folder", folder, "--question-file", folder / "questions.jsonl"]
    given += ["--answers-file", folder / "answers.jsonl", "--temperature", 0, "--max_new_tokens", 5, *flags]
    args = question_parser(JSON_LINES).parse_args([str(word) for word in given])
    answer_items(args, JSON_LINES.read(args))
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_questions_are_answered_and_runs_resume(words_model, folder):
    whole = answers_of(folder, "--method", "fixed", "--exit-layer", 1, "--batch-size", 4)
    assert [answer["question_id"] for answer in whole] == list(range(COUNT))
    assert {answer["metadata"]["exit_layer"] for answer in whole} == {1}
    assert {answer["metadata"]["visual_tokens"] for answer in whole} == {4}
    handle_of(words_model).detach()
    lines = (folder / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "answers.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:9])
    again = answers_of(folder, "--method", "fixed", "--exit-layer", 1, "--batch-size", 4)
    assert [answer["answer_id"] for answer in again[:2]] == [answer["answer_id"] for answer in whole[:2]]
    assert [answer["text"] for answer in again] == [answer["text"] for answer in whole]


def test_what_calibration_foresees_happens(words_model, folder, gates):
    """Embeddings of a family's own ``embed`` give the exits and changes that its ``generate`` then has."""
    gates.save_pretrained(folder / "gates")
    given = ["--model-path", folder, "--gates", folder / "gates", "--data-path", folder / "sample.json"]
    given += ["--image-folder", folder, "--max_new_tokens", 4, "--batch-size", 4, "--budget", 0.9]
    args = calibrate.build_parser().parse_args([str(word) for word in given])
    result = calibrate.calibrate(args)
    handle_of(words_model).detach()
    saved = ExitGates.from_pretrained(folder / "gates")
    assert saved.threshold == result.threshold and result.samples == COUNT
    asked = answers_of(folder, "--gates", folder / "gates", "--max_new_tokens", 4)
    plain = {answer["question_id"]: answer["text"] for answer in asked}
    handle_of(words_model).detach()
    without = answers_of(folder, "--method", "none", "--max_new_tokens", 4)
    changed = sum(answer["text"] != plain[answer["question_id"]] for answer in without)
    assert result.changed * COUNT == changed
    costs = [answer["metadata"]["tflops"] for answer in asked]
    assert result.cost == pytest.approx(sum(costs) / COUNT)


def test_two_threads_get_their_own_reports(hf_llava):
    """Each of two threads that ask one model is told how many tokens its own questions had."""
    chat = WordsModel(hf_llava, FixedExit(1))
    try:
        answerer = Answerer(chat, Generation(max_new_tokens=2))
        image = Image.new("RGB", (28, 28), (200, 0, 0))

        def ask(words):
            question = Question("word " * words, [image])
            return [answerer.ask([question])[0].report.prompt_tokens for _ in range(20)]

        with ThreadPoolExecutor(2) as pool:
            for words, seen in zip((3, 9), pool.map(ask, (3, 9)), strict=True):
                assert seen == [1 + 4 + words] * 20
        assert not chat.handle.traces, "a server that asks for months must not keep a trace of every question"
    finally:
        chat.handle.detach()


def test_an_installed_family_is_found_and_may_replace_ours(monkeypatch):
    point = importlib.metadata.EntryPoint("llava", "tests.engine.hf_model:opener_of", openers.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    assert openers.find_opener("llava") is opener_of
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    assert openers.find_opener("llava").__module__ == "llava.chat_model"
    with pytest.raises(ValueError, match="no model family is named 'other'; there are llava"):
        openers.open_model(ModelOptions("x"), "other")


def test_images_for_the_model_keep_whole_numbers():
    """Grids and sizes beside the pixels are not turned into the model's precision."""
    from dyvte.engine.model import Batch

    ids = torch.ones(1, 3, dtype=torch.long)
    images = {"pixel_values": [torch.ones(2)], "image_grid_thw": torch.tensor([[1, 2, 3]]), "sizes": [(3, 4)]}
    moved = Batch(ids, ids, images).to(torch.device("cpu"), torch.bfloat16).inputs()
    assert moved["pixel_values"][0].dtype == torch.bfloat16 and moved["image_grid_thw"].dtype == torch.long
    assert moved["sizes"] == [(3, 4)]


def test_no_exit_is_no_method(hf_llava):
    chat = WordsModel(hf_llava, NoExit())
    try:
        assert not Answerer(chat).exits
    finally:
        chat.handle.detach()
