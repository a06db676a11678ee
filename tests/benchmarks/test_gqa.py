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


@pytest.fixture
def folder(tmp_path, files):
    """Four balanced questions, of which the first entails two others, and one that is not balanced."""
    records = {
        "1": record("red", groups={"global": "colour"}, entailed=["1", "2", "3"]),
        "2": record("yes", "verify", question="Is it red?"),
        "3": record("no", "verify", groups={"global": "colour"}),
        "4": record("left", "choose", detailed="twoCommon"),
        "5": record("blue", isBalanced=False),
    }
    files.json(tmp_path / gqa.QUESTIONS, records)
    return tmp_path


def answers_file(folder, files, *rows):
    return files.lines(folder / "a.jsonl", [{"question_id": q, "text": t} for q, t in rows])


def test_untidy_answers_keep_the_official_number(folder, files):
    rows = [
        ("3", "No..."),
        ("1", "Blue."),
        ("99", "red"),
        ("4", "left"),
        (1, "blue"),
        ("1", "RED"),
        ("2", None),
    ]
    score = gqa.score(folder, answers_file(folder, files, *rows))
    assert score.value == 75.0 and score.parts["binary"] == 100 * (2 / 3) and score.parts["open"] == 100.0
    assert score.parts["consistency"] == 50.0  # of 2 and 3, which 1 entails, 3 is right
    assert [(q.question_id, q.score) for q in score.questions] == [("3", 1), ("1", 1), ("4", 1), ("2", 0)]
    remarks = {remark.question_id: (remark.what, remark.skipped) for remark in score.remarks}
    assert remarks == {
        "1": ("answered 2 times: the last answer counts", False),
        "2": ("text is null, not a string: taken as an empty answer", False),
        "99": ("unknown question: ignored", True),
        1: ("unknown question: ignored", True),  # ids are strings
    }
    assert score.skipped == 2


def test_missing_answers_are_wrong_and_named(folder, files):
    score = gqa.score(folder, answers_file(folder, files, ("1", "red"), ("4", "left.")))
    assert score.value == 50.0 and score.parts["consistency"] == 0.0
    assert score.parts["distribution"] == (0.0 + 1.0) / 2 / 100 * 2  # red is met, "no" is not: (0 - 1)^2 / 1
    assert [(r.question_id, r.what, r.skipped) for r in score.remarks] == [
        ("2", "no answer: counted as wrong", False),
        ("3", "no answer: counted as wrong", False),
    ]
    assert sorted((q.question_id, q.score) for q in score.questions) == [
        ("1", 1),
        ("2", 0),
        ("3", 0),
        ("4", 1),
    ]


def test_consistency_needs_answers_to_unbalanced_entailed_questions(folder, files):
    records = json.loads((folder / gqa.QUESTIONS).read_text())
    records["1"]["entailed"] = ["2", "5"]
    files.json(folder / gqa.QUESTIONS, records)
    rows = [("1", "red"), ("2", "yes"), ("3", "no"), ("4", "left")]
    assert "consistency" not in gqa.score(folder, answers_file(folder, files, *rows)).parts
    score = gqa.score(folder, answers_file(folder, files, *rows, ("5", "green")))
    assert score.parts["consistency"] == 50.0 and score.value == 100.0 and not score.remarks


def test_report_has_the_official_lines(folder, files):
    rows = [("1", "red"), ("2", "no"), ("3", "no"), ("4", "left")]
    choices = {key: {"valid": ["red", "yes", "no"], "plausible": ["red"]} for key in "1234"}
    expected = """
Binary: 66.67%
Open: 100.00%
Accuracy: 75.00%
Consistency: 50.00%
Validity: 75.00%
Plausibility: 25.00%
Distribution: 0.00 (lower is better)

Accuracy / structural type:
  choose: 100.00% (1 questions)
  query: 100.00% (1 questions)
  verify: 50.00% (2 questions)

Accuracy / semantic type:
  attr: 75.00% (4 questions)

Accuracy / steps number:
  1: 75.00% (4 questions)

Accuracy / words number:
  3: 75.00% (4 questions)
"""
    file = answers_file(folder, files, *rows)
    without = gqa.score(folder, file).report
    files.json(folder / gqa.CHOICES, choices)
    assert gqa.score(folder, file).report == expected
    assert without.startswith("Failed to load choices") and "Validity: 0.00%\n" in without


def test_distance_is_added_in_the_official_order():
    """Many thirds, whose exact sum and whose sum one by one differ."""
    gold = ["a"] * 3 + ["b"] * 7 + ["c"] * 11 + ["d"] * 13 + ["e"] * 17
    records = {str(i): record(answer, groups={"global": "g"}) for i, answer in enumerate(gold)}
    predictions = dict(zip(records, ["a"] * 5 + ["b"] * 1 + ["c"] * 20 + ["d"] * 25, strict=True))
    total = 0
    for count, said in ((3, 5), (7, 1), (11, 20), (13, 25), (17, 0)):
        total += float(said - count) ** 2 / count
    assert gqa.answer_distribution_distance(records, predictions) == float(total * 51) / 51 / 100


def test_other_split_is_an_error(folder, files):
    with pytest.raises(ValueError, match=r"a\.jsonl.*testdev_balanced_questions\.json"):
        gqa.score(folder, answers_file(folder, files, ("99", "red"), (1, "red")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is a list, not an object; take GQA's own file"),
        ("{}", "is empty"),
        ('{"1": {"question": "?"}}', "\\['1'\\] lacks answer; .* a split with ground truth"),
        ('{"1":\n{"answer" "red"}}', "not valid JSON.*line 2"),
    ],
)
def test_broken_annotations(folder, files, content, message):
    file = answers_file(folder, files, ("1", "red"))
    (folder / gqa.QUESTIONS).write_text(content)
    with pytest.raises(ValueError, match=f"testdev_balanced_questions.json.*{message}"):
        gqa.score(folder, file)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("answer", ["red"], "answer is a list, not a string"),
        ("question", 7, "question is a whole number, not a string"),
        ("types", "query", "types is a string, not an object"),
        ("types", {"structural": 1.5}, "types.structural is a number, not a string or null"),
        ("types", {"detailed": None}, "types.detailed is null, not a string"),
        ("semantic", [{"operation": "select"}], r"semantic\[0\] lacks argument"),
        ("semantic", [["select"]], r"semantic\[0\] is a list, not an object"),
        ("groups", None, "groups is null, not an object"),
        ("groups", {"global": {}}, "groups.global is an object, not a string or null"),
        ("entailed", {"1": True}, "entailed is an object, not a list"),
        ("entailed", [[]], r"entailed\[0\] is a list, not a string"),
    ],
)
def test_wrong_types_inside_annotations(folder, files, field, value, message):
    records = {"1": record("red"), "2": {**record("blue"), field: value}}
    files.json(folder / gqa.QUESTIONS, records)
    with pytest.raises(ValueError, match=rf"testdev_balanced_questions.json: \['2'\].{message}; take GQA's"):
        gqa.score(folder, answers_file(folder, files, ("1", "red")))


def test_wrong_types_inside_choices(folder, files):
    files.json(folder / gqa.CHOICES, {"1": {"valid": ["red", 1], "plausible": []}})
    with pytest.raises(ValueError, match=r"choices.json: \['1'\].valid\[1\] is a whole number, not a string"):
        gqa.score(folder, answers_file(folder, files, ("1", "red")))


def test_check_before_inference(folder, files):
    rows = [{"question_id": key} for key in "1234"]
    questions = files.lines(folder / gqa.QUESTION_FILE, rows)
    gqa.check_questions(folder)
    files.json(folder / gqa.CHOICES, {"1": {"valid": [], "plausible": []}})
    with pytest.raises(ValueError, match="choices.json has no valid and plausible answers for question .2"):
        gqa.check_questions(folder)
    (folder / gqa.CHOICES).unlink()
    files.lines(questions, [*rows, {"question_id": "77"}])
    with pytest.raises(ValueError, match="jsonl, line 5: question '77' has no record"):
        gqa.check_questions(folder)


def test_converter_script(tmp_path, files):
    rows = [{"question_id": q, "text": t} for q, t in (("7", "A Dog."), ("8", "Ähnlich. "), ("7", "Cat.."))]
    source = files.lines(tmp_path / "merge.jsonl", rows)
    target = tmp_path / "predictions.json"
    script = ROOT / "scripts/convert_gqa_for_eval.py"
    subprocess.run([sys.executable, script, "--src", source, "--dst", target], check=True, cwd=ROOT)
    assert json.loads(target.read_text()) == [
        {"questionId": "7", "prediction": "a dog"},
        {"questionId": "8", "prediction": "ähnlich. "},
        {"questionId": "7", "prediction": "cat"},
    ]
