"""ScienceQA: reading letters, and LLaVA's figures and files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dyvte.benchmarks import sqa
from dyvte.benchmarks.benchmark import Remark
from llava.eval import eval_science_qa

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        ("F", "FAILED"),
        ("c", "FAILED"),
        (" C", "FAILED"),
        ("C.", "FAILED"),
        ("C. ", "C"),
        ("C. no", "C"),
        ("C.no", "FAILED"),
        ("F. no", "FAILED"),
        ("\uff23. no", "FAILED"),  # full-width letter
        ("C. The answer is D.", "C"),
        ("I think. The answer is D. Yes", "D"),
        ("The answer is D", "FAILED"),  # nothing behind the letter
        ("The answer is D\n", "FAILED"),
        ("The answer is Boston.", "B"),
        ("The answer is Z.", "Z"),
        ("the answer is D.", "FAILED"),
        ("The answer is D. The answer is D.", "FAILED"),
        ("", "FAILED"),
        ("x" * 100_000, "FAILED"),
        ("Yes, there is", "FAILED"),
    ],
)
def test_letter_of_an_answer(text, letter):
    assert sqa.letter_of(text) == letter


def test_letter_beyond_the_choices_is_no_index():
    assert [sqa.index_of(letter, ["x", "y", "z"]) for letter in ("A", "C", "D", "Z", "FAILED")] == [
        0,
        2,
        -1,
        -1,
        -1,
    ]


def problem(answer, image=None, hint="", grade=1, subject="natural science", choices=("x", "y", "z")):
    texts = {"question": "Which?", "lecture": "Read  this.", "solution": "See."}
    fields = {"image": image and "image.png", "hint": hint, "grade": f"grade{grade}", "subject": subject}
    return {"choices": list(choices), "answer": answer, **fields, **texts}


@pytest.fixture
def folder(tmp_path, files):
    problems = {
        "7": problem(1, image=True, hint="look", grade=6),
        "3": problem(0, image=True, grade=7, subject="social science"),
        "5": problem(2, hint="read", grade=12, subject="language science"),
        "4": problem(1, grade=2),
        "9": problem(0, image=True, grade=1),
        "1": problem(0),
    }
    files.json(tmp_path / sqa.PROBLEMS, problems)
    files.json(tmp_path / sqa.SPLITS, {"test": ["7", "3", "5", "4", "9"], "train": ["1"]})
    return tmp_path


def answer(name, text, image=False):
    return {"question_id": name, "prompt": "<image>\nWhich?" if image else "Which?", "text": text}


ALL = [
    answer("7", "B", True),
    answer("3", "B. y", True),
    answer("5", "The answer is C.", False),
    answer("4", "C"),
    answer("9", "A", True),
]


def test_figures(folder, files):
    score = sqa.score(folder, files.lines(folder / "a.jsonl", ALL[::-1]))
    assert score.parts == {
        "accuracy": 3 / 5 * 100,
        "IMG-accuracy": 2 / 3 * 100,
        "subject.natural science": 2 / 3 * 100,
        "subject.social science": 0.0,
        "subject.language science": 100.0,
        "context.text": 100.0,
        "context.image": 2 / 3 * 100,
        "context.none": 0.0,
        "grade.1-6": 2 / 3 * 100,
        "grade.7-12": 50.0,
    }
    assert (score.value, score.remarks) == (2 / 3 * 100, [])
    assert score.report == "Total: 5, Correct: 3, Accuracy: 60.00%, IMG-Accuracy: 66.67%"
    assert [(question.question_id, question.score) for question in score.questions] == [
        ("7", 1.0),
        ("3", 0.0),
        ("5", 1.0),
        ("4", 0.0),
        ("9", 1.0),
    ]


def test_breakdowns_need_their_fields(folder, files):
    bare = {name: {"choices": ["x", "y", "z"], "answer": 1} for name in ("7", "3", "5", "4", "9")}
    files.json(folder / sqa.PROBLEMS, bare)
    score = sqa.score(folder, files.lines(folder / "a.jsonl", ALL))
    assert score.parts == {"accuracy": 40.0, "IMG-accuracy": 2 / 3 * 100} and score.remarks == []


def test_what_is_miscounted_is_counted_alike_and_named(folder, files):
    rows = [
        answer("7", "A", True),
        answer("7", "B", True),  # of two answers the last one counts
        answer(3, "A", True),  # a number is no id
        answer("5", None),
        answer("4", "B", True),  # a prompt with an image, a problem without
        answer("nowhere", "A", True),
        answer("1", "A", True),  # of another split
        {"question_id": "9", "text": "A"},
    ]
    score = sqa.score(folder, files.lines(folder / "a.jsonl", rows))
    assert (score.parts["accuracy"], score.value) == (3 / 5 * 100, 100.0)
    assert score.remarks == [
        Remark("5", "text is null, not a string: taken as an empty answer", False),
        Remark("7", "answered again: only the last answer counts", True),
        Remark(3, "no such question (a number; ids are strings): left out", True),
        Remark("nowhere", "no such question: left out", True),
        Remark("1", "no such question: left out", True),
        Remark("3", "no answer: wrong, and without a part in the accuracy on images", True),
        Remark("4", "image in problems.json: False, in the prompt: True; counted among the images", False),
        Remark("9", "no prompt: taken as a question without an image", True),
    ]


def test_no_prompt_with_an_image(folder, files):
    score = sqa.score(folder, files.lines(folder / "a.jsonl", [answer("5", "C"), answer("4", "A")]))
    assert score.value == 0.0 and "IMG-accuracy" not in score.parts
    assert score.parts["accuracy"] == 20.0
    assert score.remarks[-1].question_id == "all" and "no prompt has an image" in score.report


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.jsonl", [answer(7, "A")], "No answer in .*a.jsonl"),
        ("a.jsonl", [{"question_id": "7"}], "line 1 lacks text"),
        (sqa.SPLITS, {"val": ["7"]}, "lacks test"),
        (
            sqa.SPLITS,
            {"test": ["7", "6"]},
            r"problems.json: \['6'\] is null, not an object; pid_splits.json names it",
        ),
        (sqa.PROBLEMS, [], "not an object"),
        (sqa.PROBLEMS, {"7": {"choices": ["x"], "answer": 5}}, "answer of problem '7' is 5"),
        (sqa.PROBLEMS, {"7": {"choices": ["x"], "answer": -1}}, "answer of problem '7' is -1"),
        (sqa.PROBLEMS, {"7": {"answer": 0}}, r"problems.json: \['7'\] lacks choices"),
    ],
)
def test_broken_files(folder, files, file, content, message):
    answers = files.lines(folder / "a.jsonl", [answer("7", "A", True)])
    files.json(folder / sqa.SPLITS, {"test": ["7"]})
    (files.lines if file.endswith("jsonl") else files.json)(folder / file, content)
    with pytest.raises(ValueError, match=message):
        sqa.score(folder, answers)


def test_check_of_questions(folder, files):
    files.json(folder / sqa.QUESTIONS, [{"id": "7"}, {"id": "3"}])
    sqa.check_questions(folder)
    files.json(folder / sqa.QUESTIONS, [{"id": "7"}, {"id": "1"}])
    with pytest.raises(ValueError, match="entry 1 has the id '1'"):
        sqa.check_questions(folder)


def test_command_line_writes_what_llava_writes(folder, files, capsys):
    answers = files.lines(folder / "a.jsonl", [*ALL[:2], answer("4", "D")])
    outputs = [folder / "out/output.jsonl", folder / "out/result.json"]
    flags = ["--base-dir", folder, "--result-file", answers, "--output-file", outputs[0]]
    eval_science_qa.main([str(flag) for flag in [*flags, "--output-result", outputs[1]]])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Total: 5, Correct: 1, Accuracy: 20.00%, IMG-Accuracy: 50.00%"
    analyses, result = (json.loads(path.read_text()) for path in outputs)
    assert analyses["correct"] == [
        {
            "question_id": "7",
            "parsed_ans": "B",
            "ground_truth": "B",
            "question": "<image>\nWhich?",
            "pred": "B",
            "is_multimodal": True,
        }
    ]
    unanswered = {"parsed_ans": "FAILED", "question": "Unknown", "pred": "FAILED", "is_multimodal": False}
    assert [entry["question_id"] for entry in analyses["incorrect"]] == ["3", "5", "4", "9"]
    assert analyses["incorrect"][1] == {"question_id": "5", "ground_truth": "C", **unanswered}
    assert result == {
        "acc": 20.0,
        "correct": 1,
        "count": 5,
        "results": {"7": 1, "3": 1, "5": -1, "4": -1, "9": -1},
        "outputs": {"7": "B", "3": "B. y", "5": "FAILED", "4": "D", "9": "FAILED"},
    }


def test_command_line_knows_splits_and_options(folder, files, capsys):
    files.json(folder / sqa.SPLITS, {"minival": ["3", "1"]})
    answers = files.lines(folder / "a.jsonl", [answer("3", "p", True), answer("1", "A", True)])
    flags = ["--base-dir", folder, "--result-file", answers, "--split", "minival", "--options", "pqrst"]
    outputs = ["--output-file", folder / "o", "--output-result", folder / "r"]
    eval_science_qa.main([str(flag) for flag in flags + outputs])
    assert "Total: 2, Correct: 1, Accuracy: 50.00%" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="lacks test"):
        eval_science_qa.main([str(flag) for flag in [*flags[:4], *outputs]])


# Stands for `python`: notes what it is asked, answers every question with A, and does the scoring really.
STUB = f"""#!{sys.executable}
import json, os, sys
if sys.argv[2] == "dyvte.engine.shards":
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
open(os.environ["CALLS"], "a").write(" ".join(sys.argv[2:]) + "\\n")
if sys.argv[2] == "llava.eval.model_vqa_science":
    flags = dict(zip(sys.argv, sys.argv[1:]))
    rows = json.load(open(flags["--question-file"]))
    with open(flags["--answers-file"], "w") as out:
        for row in rows:
            out.write(json.dumps(dict(question_id=row["id"], text="A", prompt="<image>")) + "\\n")
    from tests.fixtures.answering import mark
    mark(flags["--answers-file"])
elif "llava.eval.eval_science_qa" in sys.argv:
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
"""


def test_script(folder, files, tmp_path):
    files.json(folder / sqa.QUESTIONS, [{"id": name} for name in ("7", "3", "5", "4", "9")])
    stub, calls = tmp_path / "python", tmp_path / "calls"
    stub.write_text(STUB)
    stub.chmod(0o755)
    settings = {"PYTHON": stub, "CALLS": calls, "DATA": folder, "MODEL": "a/model"}
    environment = {**os.environ, **{key: str(value) for key, value in settings.items()}}
    command = ["bash", str(ROOT / "scripts/v1_5/eval/sqa.sh"), "--dtype", "bfloat16"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = next(
        call for call in calls.read_text().splitlines() if call.startswith("llava.eval.model_vqa_science")
    )
    assert (
        "--single-pred-prompt --dtype bfloat16" in asked and f"--image-folder {folder}/images/test" in asked
    )
    assert "Total: 5, Correct: 2, Accuracy: 40.00%, IMG-Accuracy: 40.00%" in done.stdout
    assert json.loads((folder / "answers/llava_test_CQM-A/model/result.json").read_text())["correct"] == 2
