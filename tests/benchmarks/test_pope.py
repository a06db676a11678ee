"""POPE: how replies are read, how they meet labels, the figures, and what is refused."""

import json

import pytest

from dyvte.benchmarks import pope
from dyvte.benchmarks.pope_pairing import says_yes
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
    assert says_yes(text) is yes


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


def as_in_llava(folder, texts_by_split):
    """Value and figures worked out plainly: pair by position, count, divide."""
    f1s = {}
    for split in ("adversarial", "popular", "random"):
        lines = (folder / f"coco/coco_pope_{split}.json").read_text().splitlines()
        pairs = list(zip(texts_by_split[split], [json.loads(line)["label"] for line in lines], strict=False))
        hit, said = sum(p == ("yes", "yes") for p in pairs), sum(text == "yes" for text, _ in pairs)
        real = sum(label == "yes" for _, label in pairs)
        precision, recall = (hit / said if said else 0.0), (hit / real if real else 0.0)
        f1s[split] = 2 * precision * recall / (precision + recall) if hit else 0.0
    return f1s, 100 * (sum(f1s.values()) / 3)


def check_against_llava(folder, score, texts_by_split):
    f1s, value = as_in_llava(folder, texts_by_split)
    assert score.value == value
    assert {split: score.parts[f"{split}.f1"] for split in f1s} == {k: 100 * v for k, v in f1s.items()}


def test_missing_answer_moves_later_ones_up(folder, files):
    rows = answers_of("yes", "yes", "no", "no", "yes", "no", "no", "no")
    score = pope.score(folder, files.lines(folder / "a.jsonl", rows[1:]))
    texts = {"adversarial": ["yes", "no", "no"], "popular": ["yes", "no"], "random": ["no", "no"]}
    check_against_llava(folder, score, texts)
    assert score.parts["adversarial.f1"] == pytest.approx(100 * 2 / 3) and score.variant == "position"
    assert score.parts["adversarial.yes_ratio"] == 100 * (1 / 3)
    assert [(r.question_id, r.what, r.skipped) for r in score.remarks if r.question_id in (1, 2, 3, 4)] == [
        (1, "no answer: left out; later answers move up", True),
        (2, "scored by the label of question 1, by position", False),
        (3, "scored by the label of question 2, by position", False),
        (4, "scored by the label of question 3, by position", False),
    ]


def test_repeated_and_unknown_answers(folder, files):
    rows = answers_of("yes", "yes", "yes", "no", "yes", "no", "no", "no")
    rows = [
        *rows[:3],
        {"question_id": 99, "text": "no"},
        {"question_id": "1", "text": "no"},
        rows[0],
        *rows[3:],
    ]
    score = pope.score(folder, files.lines(folder / "a.jsonl", rows))
    texts = {"adversarial": ["yes"] * 4 + ["no"], "popular": ["yes", "no"], "random": ["no", "no"]}
    check_against_llava(folder, score, texts)
    # Four of five answers say yes, although only four meet a label.
    assert score.parts["adversarial.yes_ratio"] == 80.0 and score.parts["adversarial.fp"] == 2
    assert "Category: adversarial, # samples: 5\n" in score.report
    remarks = [(r.question_id, r.what, r.skipped) for r in score.remarks if r.question_id != "random"]
    assert remarks == [
        (1, "answered 2 times: each takes a label; later answers move down", False),
        (99, "unknown question: ignored", True),
        ("1", "unknown question: ignored", True),  # ids are whole numbers
        (1, "scored by the label of question 4, by position", False),
        (4, "more answers than labels: counts in the yes ratio alone", True),
    ]
    assert len(score.questions) == 8


def test_order_matters_by_position_and_not_by_id(folder, files):
    rows = answers_of("yes", "yes", "no", "no", "yes", "no", "no", "no")
    file = files.lines(folder / "a.jsonl", rows[::-1])
    texts = {"adversarial": ["no", "no", "yes", "yes"], "popular": ["no", "yes"], "random": ["no", "no"]}
    check_against_llava(folder, pope.score(folder, file), texts)
    score = pope.score(folder, file, "id")
    assert (
        score.value == pytest.approx(200 / 3) and score.parts["accuracy"] == 100.0 and score.variant == "id"
    )
    assert [question.question_id for question in score.questions] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert all(question.score == 1 for question in score.questions)


def test_by_id_the_last_answer_counts_and_a_missing_one_is_wrong(folder, files):
    rows = answers_of("no", "yes", "no", "no", "yes", "no", "no", "no")
    rows = [*rows[1:3], rows[0], {"question_id": 1, "text": "yes"}, *rows[4:]]  # 4 is missing
    score = pope.score(folder, files.lines(folder / "a.jsonl", rows), "id")
    assert [score.parts[f"adversarial.{name}"] for name in ("tp", "fp", "tn", "fn")] == [2, 1, 1, 0]
    assert score.parts["adversarial.yes_ratio"] == 100 * (2 / 3)
    assert [(r.question_id, r.what) for r in score.remarks if r.question_id in (1, 4)] == [
        (4, "no answer: counted as wrong"),
        (1, "answered 2 times: the last answer counts"),
    ]


def test_null_text_is_a_yes_and_nothing_to_divide_by_is_named(folder, files):
    rows = answers_of("no", "no", "no", "no", None, "no", "no", "no")
    score = pope.score(folder, files.lines(folder / "a.jsonl", rows))
    assert score.parts["popular.f1"] == 100.0 and score.parts["adversarial.f1"] == 0.0
    assert [(r.question_id, r.what) for r in score.remarks] == [
        (5, "text is null, not a string: taken as an empty answer"),
        ("adversarial", "nothing to divide by: counted as 0: precision, F1"),
        ("random", "nothing to divide by: counted as 0: precision, recall, F1"),
    ]


def test_stray_files_beside_the_labels(folder, files):
    rows = answers_of("Yes", "no", "Yes", "no", "Yes", "no", "no", "no")
    file = files.lines(folder / "a.jsonl", rows)
    plain = pope.score(folder, file)
    (folder / "coco/.DS_Store").write_text("x")
    (folder / "coco/README.json").write_text("x")
    files.lines(folder / "coco/coco_pope_other.json", [{"label": "yes"}])
    assert pope.score(folder, file) == plain


def test_errors(folder, files):
    file = files.lines(folder / "a.jsonl", [{"question_id": "1", "text": "no"}])
    with pytest.raises(ValueError, match=r"a\.jsonl.*llava_pope_test\.jsonl"):
        pope.score(folder, file)
    with pytest.raises(ValueError, match="no variant 'best'"):
        pope.score(folder, file, "best")


def test_check_before_inference(folder, files):
    pope.check_questions(folder)
    row = {"question_id": 9, "image": "a.png", "text": "Is there?", "category": "random"}
    questions = folder / pope.QUESTIONS
    good = questions.read_text()
    questions.write_text(good + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="llava_pope_test.jsonl, line 9: .*random.json has only 2 labels"):
        pope.check_questions(folder)
    questions.write_text(good + json.dumps({**row, "category": "odd"}) + "\n")
    with pytest.raises(ValueError, match="line 9: .*coco has no .coco_pope_odd.json"):
        pope.check_questions(folder)
    questions.write_text(good)
    labels = [
        {"image": "a.png", "text": "Is there?", "label": "yes"},
        {"image": "a.png", "text": "What?", "label": "no"},
    ]
    files.lines(folder / "coco/coco_pope_popular.json", labels)
    with pytest.raises(ValueError, match="line 6 asks what .*popular.json, line 2 does not label"):
        pope.check_questions(folder)
    files.lines(folder / "coco/coco_pope_popular.json", [labels[0], {**labels[0], "label": "maybe"}])
    with pytest.raises(ValueError, match="popular.json, line 2: the label 'maybe'"):
        pope.check_questions(folder)


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
    popular = """Category: popular, # samples: 2
TP\tFP\tTN\tFN\t
0\t0\t1\t1
Accuracy: 0.5
Precision: 0.0
Recall: 0.0
F1 score: 0.0
Yes ratio: 0.0
0.000, 0.500, 0.000, 0.000, 0.000
====================================
"""
    assert popular in out and out.count("Category: ") == 3


def test_command_line_pairs_by_position(folder, files, capsys):
    rows = answers_of("yes", "yes", "no", "no", "yes", "no", "no", "no")
    file = files.lines(folder / "a.jsonl", rows[::-1])
    flags = {
        "--annotation-dir": folder / "coco",
        "--question-file": folder / pope.QUESTIONS,
        "--result-file": file,
    }
    eval_pope.main([str(word) for pair in flags.items() for word in pair])
    out = capsys.readouterr().out
    assert out.startswith(
        "Category: adversarial, # samples: 4\nTP\tFP\tTN\tFN\t\n0\t2\t0\t2\nAccuracy: 0.0\n"
    )
