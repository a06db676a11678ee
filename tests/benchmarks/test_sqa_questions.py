"""ScienceQA: the questions as they are asked, and the data for training."""

import argparse
import importlib
import json
from pathlib import Path

import pytest

from dyvte.benchmarks import sqa
from llava.eval import model_vqa_science

ROOT = Path(__file__).parents[2]
LETTER = "Answer with the option's letter from the given choices directly."


def rows_to_ask():
    def row(name, value, **image):
        return {
            "id": name,
            **image,
            "conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "A"}],
        }

    return [row("7", "<image>\nWhich?\nA. x", image="7/image.png"), row("5", " Context: read\nWhich? ")]


@pytest.mark.parametrize(("flags", "suffix"), [([], ""), (["--single-pred-prompt"], f"\n{LETTER}")])
def test_questions_as_they_are_asked(tmp_path, files, flags, suffix):
    path = files.json(tmp_path / "q.json", rows_to_ask())
    args = model_vqa_science.build_parser().parse_args(["--question-file", str(path), *flags])
    with_image, without = sqa.read_items(args)
    assert with_image.head == {"question_id": "7", "prompt": f"<image>\nWhich?\nA. x{suffix}"}
    assert with_image.images == ("7/image.png",)
    assert without.head == {"question_id": "5", "prompt": f"Context: read\nWhich?{suffix}"}
    assert without.images == () and without.text == without.head["prompt"]


def test_a_missing_flag_means_its_default(tmp_path, files):
    path = files.json(tmp_path / "q.json", rows_to_ask())
    items = sqa.read_items(argparse.Namespace(question_file=str(path)))
    assert items[0].text == "<image>\nWhich?\nA. x"


def test_defaults_are_those_of_llava():
    args = model_vqa_science.build_parser().parse_args(["--answer-prompter"])
    assert (args.conv_mode, args.max_new_tokens, args.question_file, args.temperature) == (
        "llava_v0",
        1024,
        "tables/question.json",
        0.2,
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "q.json is not valid JSON"),
        ("{}", "q.json is not a list"),
        ('[{"id": "1"}]', "q.json, entry 0: not a question"),
        ('[{"id": "1", "conversations": [{"value": null}]}]', "q.json, entry 0: not a question"),
    ],
)
def test_broken_question_files(tmp_path, content, message):
    (tmp_path / "q.json").write_text(content)
    args = argparse.Namespace(question_file=str(tmp_path / "q.json"))
    with pytest.raises(ValueError, match=message):
        sqa.read_items(args)


def problem(answer, image, hint):
    texts = {"question": "Which?", "hint": hint, "lecture": "Read  this.", "solution": "See."}
    return {"choices": ["x", "y", "z"], "answer": answer, "image": image, **texts}


@pytest.fixture
def folder(tmp_path, files):
    problems = {
        "7": problem(1, "image.png", "look"),
        "3": problem(0, "image.png", ""),
        "4": problem(1, None, ""),
    }
    files.json(tmp_path / sqa.PROBLEMS, problems)
    files.json(tmp_path / sqa.SPLITS, {"test": ["7", "3", "4"]})
    return tmp_path


@pytest.fixture
def convert(folder, monkeypatch):
    """Run the converter to training data on the folder."""
    monkeypatch.syspath_prepend(ROOT / "scripts")

    def run(task, prompt_format, split="test"):
        flags = ["--base-dir", str(folder), "--split", split, "--prompt-format", prompt_format]
        importlib.import_module("convert_sqa_to_llava").main([task, *flags])

    return run


def test_training_data(folder, convert, capsys):
    convert("convert_to_llava", "QCM-LEA")
    assert capsys.readouterr().out == "Number of samples: 3\n"
    rows = json.loads((folder / "llava_test_QCM-LEA.json").read_text())
    assert [row["id"] for row in rows] == ["7", "3", "4"]
    assert rows[0] == {
        "id": "7",
        "image": "7/image.png",
        "conversations": [
            {"from": "human", "value": "Which?\nContext: look\nOptions: (A) x (B) y (C) z\n<image>"},
            {"from": "gpt", "value": "Read this. See. The answer is B."},
        ],
    }
    assert rows[2] == {
        "id": "4",
        "conversations": [
            {"from": "human", "value": "Which?\nContext: N/A\nOptions: (A) x (B) y (C) z"},
            {"from": "gpt", "value": "Read this. See. The answer is B."},
        ],
    }


@pytest.mark.parametrize(
    ("prompt_format", "question", "answer"),
    [
        ("CQM-A", "Context: N/A\nQuestion: Which?\nOptions: (A) x (B) y (C) z\n<image>", "The answer is A."),
        ("QCML-AL", "Which?\nContext: N/A\nOptions: (A) x (B) y (C) z\nBECAUSE: Read this.\n<image>",
         "The answer is A. BECAUSE: See."),
        ("QCLEM-LEPA", "Which?\nContext: N/A\nBECAUSE: Read this. See.\nOptions: (A) x (B) y (C) z\n<image>",
         "LECTURE: Read this.\nSOLUTION: See.\n###\nANSWER: A."),
    ],
)  # fmt: skip
def test_training_formats(folder, convert, prompt_format, question, answer):
    convert("convert_to_jsonl", prompt_format)
    lines = (folder / f"scienceqa_test_{prompt_format}.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {
        "id": "3",
        "image": "3/image.png",
        "instruction": question,
        "output": answer,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("QCM-X",), "unknown format 'QCM-X'"), (("QCM-A", "nosplit"), "has no split 'nosplit'")],
)
def test_training_data_that_cannot_be_made(convert, arguments, message):
    with pytest.raises(SystemExit, match=message):
        convert("convert_to_llava", *arguments)
