"""POPE: how replies are read, the figures, and what is refused."""

import pytest

from dyvte.benchmarks import pope
from llava.eval import eval_pope


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("No", False),
        ("no", False),
        ("No.", False),
        ("No, there is none", False),
        ("There is not", False),
        ("Yes. No", True),
        ("NO", True),
        ("No!", True),
        ("No\n", True),
        ("Not", True),
        ("Nope", True),
        ("no\u00a0dog", True),
        ("", True),
        ("n,o", False),
    ],
)
def test_reading_of_replies(text, yes):
    assert pope.says_yes(text) is yes


@pytest.fixture
def folder(tmp_path, files):
    labels = {"adversarial": ["yes", "yes", "no", "no"], "popular": ["yes", "no"], "random": ["no", "no"]}
    rows, number = [], 0
    for split, values in labels.items():
        files.lines(
            tmp_path / f"coco/coco_pope_{split}.json",
            [{"question_id": i, "label": v} for i, v in enumerate(values)],
        )
        for _ in values:
            number += 1
            rows.append({"question_id": number, "image": "a.png", "text": "Is there?", "category": split})
    files.lines(tmp_path / pope.QUESTIONS, rows)
    return tmp_path


def answers_of(*texts):
    return [{"question_id": number, "text": text} for number, text in enumerate(texts, start=1)]


def test_figures(folder, files):
    file = files.lines(folder / "a.jsonl", answers_of("Yes", "no", "Yes", "no", "Yes", "no", "no", "no"))
    score = pope.score(folder, file)
    assert score.parts["adversarial.f1"] == 50.0 and score.parts["adversarial.accuracy"] == 50.0
    assert score.parts["popular.f1"] == 100.0
    assert (
        score.parts["random.f1"] == 0.0 and score.parts["random.accuracy"] == 100.0
    )  # no positives: no crash
    assert score.value == score.parts["f1"] == 50.0
    assert score.parts["adversarial.yes_ratio"] == 50.0
    assert [question.score for question in score.questions] == [1, 0, 0, 1, 1, 1, 1, 1]


def test_missing_answer_does_not_shift_pairs(folder, files):
    file = files.lines(folder / "a.jsonl", answers_of(*["no"] * 8)[1:])
    with pytest.raises(ValueError, match="adversarial has 4 labels but 3 answers"):
        pope.score(folder, file)


@pytest.mark.parametrize("extra", [1, 99])
def test_repeated_or_unknown_question(folder, files, extra):
    rows = answers_of(*["no"] * 8)
    file = files.lines(folder / "a.jsonl", [*rows[:3], {"question_id": extra, "text": "no"}, *rows[3:]])
    with pytest.raises(ValueError, match=f"question {extra} has no label"):
        pope.score(folder, file)


def test_no_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match="coco_pope"):
        pope.read_labels(tmp_path)


def test_command_line_prints_each_split(folder, files, capsys):
    file = files.lines(folder / "a.jsonl", answers_of(*["no"] * 8))
    arguments = [
        "--annotation-dir",
        folder / "coco",
        "--question-file",
        folder / pope.QUESTIONS,
        "--result-file",
        file,
    ]
    eval_pope.main([str(argument) for argument in arguments])
    out = capsys.readouterr().out
    assert "Category: adversarial, # samples: 4" in out
    assert "0.000, 0.500, 0.000, 0.000, 0.000" in out
    assert out.count("=====") and out.count("Yes ratio: 0.0") == 3
