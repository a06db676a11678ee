"""GQA's figures on hand-made records."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dyvte.benchmarks import gqa

ROOT = Path(__file__).parents[2]


def record(answer, structural="query", **extra):
    types = {"structural": structural, "semantic": "attr", "detailed": extra.pop("detailed", "x")}
    semantic = [{"operation": name, "argument": "?"} for name in ("select", "exist", "query: name")]
    plain = {
        "question": "What is it?",
        "answer": answer,
        "isBalanced": True,
        "types": types,
        "semantic": semantic,
    }
    return {**plain, "groups": {"global": None}, "entailed": [], **extra}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Yes.", "yes"), ("Yes...", "yes"), ("yes. ", "yes. "), (" yes", " yes"), ("A.B.", "a.b"), ("", "")],
)
def test_conversion_of_answers(text, expected):
    assert gqa.prediction_of(text) == expected


def test_accuracy_and_breakdowns():
    records = {
        "1": record("red"),
        "2": record("yes", "verify", question="Is it?"),
        "3": record("no", "verify"),
        "4": record("never asked", isBalanced=False),
    }
    parts = gqa.score_predictions(records, {"1": "red", "2": "yes", "3": "yes"})
    assert parts["accuracy"] == pytest.approx(100 * 2 / 3)
    assert (parts["open"], parts["binary"]) == (100.0, 50.0)
    assert (parts["structural.verify"], parts["semantic.attr"]) == (50.0, pytest.approx(100 * 2 / 3))
    assert (parts["words.02"], parts["words.03"]) == (100.0, 50.0)
    assert parts["steps.01"] == pytest.approx(100 * 2 / 3)  # "exist" and "query: name" are no steps
    assert "distribution" not in parts and "consistency" not in parts and "validity" not in parts


def test_distribution_weighs_groups_by_size():
    groups = [{"groups": {"global": name}} for name in ("colour", "colour", "colour", "size")]
    records = {
        str(i): record(answer, **group)
        for i, (answer, group) in enumerate(zip(["red", "red", "blue", "big"], groups, strict=True))
    }
    predictions = {"0": "red", "1": "blue", "2": "blue", "3": "small"}
    # colour: red 1 of 2 gives 1/2, blue 2 of 1 gives 1; size: 0 of 1 gives 1.
    expected = (1.5 * 3 + 1.0 * 1) / 4 / 100
    assert gqa.answer_distribution_distance(records, predictions) == pytest.approx(expected)


def test_consistency_looks_only_at_correct_questions():
    records = {
        "1": record("yes", entailed=["1", "2", "3"]),
        "2": record("no", entailed=["1"]),
        "3": record("red"),
    }
    parts = gqa.score_predictions(records, {"1": "yes", "2": "yes", "3": "red"})
    assert parts["consistency"] == 50.0
    records["1"]["entailed"].append("not in the file")
    assert "consistency" not in gqa.score_predictions(records, {"1": "yes", "2": "yes", "3": "red"})


def test_validity_and_plausibility_with_common_attributes():
    records = {"1": record("red"), "2": record("shape", detailed="twoCommon")}
    choices = {key: {"valid": ["red", "blue"], "plausible": ["red"]} for key in records}
    parts = gqa.score_predictions(records, {"1": "blue", "2": "material"}, choices)
    assert (parts["validity"], parts["plausibility"]) == (100.0, 50.0)


def test_score_from_files_takes_the_last_answer_and_ignores_strangers(tmp_path, files):
    files.json(tmp_path / "data/testdev_balanced_questions.json", {"1": record("red"), "2": record("blue")})
    rows = [("1", "Blue."), ("2", "blue"), ("1", "Red."), ("99", "red")]
    answers = files.lines(tmp_path / "a.jsonl", [{"question_id": q, "text": t} for q, t in rows])
    score = gqa.score(tmp_path, answers)
    assert score.value == 100.0
    assert {question.question_id: question.score for question in score.questions} == {"1": 1.0, "2": 1.0}


def test_missing_answer_is_refused(tmp_path, files):
    files.json(tmp_path / "data/testdev_balanced_questions.json", {"1": record("red"), "2": record("blue")})
    answers = files.lines(tmp_path / "a.jsonl", [{"question_id": "1", "text": "red"}])
    with pytest.raises(ValueError, match="1 of 2 GQA questions have no answer"):
        gqa.score(tmp_path, answers)


def test_converter_script(tmp_path, files):
    source = files.lines(tmp_path / "merge.jsonl", [{"question_id": "7", "text": "A Dog."}])
    target = tmp_path / "predictions.json"
    script = ROOT / "scripts/convert_gqa_for_eval.py"
    subprocess.run([sys.executable, script, "--src", source, "--dst", target], check=True, cwd=ROOT)
    assert json.loads(target.read_text()) == [{"questionId": "7", "prediction": "a dog"}]
