"""The VQA normaliser, quirk by quirk, and the leave-one-out accuracy."""

import re

import pytest

from dyvte.benchmarks.vqa_text import CONTRACTIONS, leave_one_out_accuracy, normalise, strip_punctuation
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor, TextVQAAccuracyEvaluator


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Red Car", "red car"),
        ("the", ""),
        ("?", ""),
        (".", ""),
        ("", ""),
        ("None", "0"),
        ("ten", "10"),
        ("tenth", "tenth"),
        ("3.", "3"),  # a digit before the period does not protect it
        ("1.a", "1a"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("red,white", "redwhite"),
        ("1,000", "1000"),
        ("men's", "men 's"),
        ("he's", "he 's"),
        ("hes", "he's"),
        ("dont", "don't"),
        ("ID'VE", "id've"),  # keys with a capital never match lower-cased words
        ("somebody'd", "somebodyd"),
        ("twas", "'twas"),
        ("coca-cola", "coca cola"),
        ("coca- cola", "coca cola"),
        ("a-b - c", "ab c"),  # one mark beside a blank: all its marks are deleted
        ("10:30", "10:30"),
        ("$5", "$5"),
        ("50%", "50%"),
        ("a\tb\nc", "b c"),
        ("x\u00a0the\u3000y", "x y"),
        ("one\u200btwo", "one\u200btwo"),
        ("A.B.C.", "abc"),
        ("(yes)", "yes"),
        ("\u201cyes\u201d", "\u201cyes\u201d"),
    ],
)
def test_normalise(answer, expected):
    assert normalise(answer) == expected
    assert EvalAIAnswerProcessor()(answer) == expected


def test_only_the_first_periods_are_deleted():
    assert normalise("." * 40) == "." * 8


def test_comma_between_digits_deletes_every_mark():
    """Reached only without the step that removes commas before, as VQAv2 uses it."""
    assert strip_punctuation("1,000-2") == "10002"
    assert strip_punctuation("1000-2") == "1000 2"


def test_contractions_are_complete():
    """As many as the original has, and one of each odd kind."""
    assert len(CONTRACTIONS) == 120
    odd = {"couldnt've": "couldn't've", "hed've": "he'd've", "ow's'at": "'ow's'at", "yall'll": "y'all'll"}
    assert {key: CONTRACTIONS[key] for key in odd} == odd


@pytest.mark.parametrize(
    ("matching", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_leave_one_out(matching, expected):
    humans = ["x"] * matching + ["y"] * (10 - matching)
    assert leave_one_out_accuracy("x", humans) == pytest.approx(expected, abs=1e-12)


def test_accuracy_evaluator_normalises_both_sides():
    entry = {"pred_answer": "The Stop.", "gt_answers": ["stop"] * 4 + ["go"] * 6}
    assert TextVQAAccuracyEvaluator().eval_pred_list([entry, {**entry, "pred_answer": "left"}]) == 0.5


def test_leave_one_out_to_the_last_digit():
    """Every position of the agreeing humans, against the sum as the original writes it: whole ones, float thirds."""
    for mask in range(1 << 10):
        humans = ["x" if mask >> place & 1 else "y" for place in range(10)]
        credits = []
        for place in range(10):
            others = humans[:place] + humans[place + 1 :]
            credits.append(min(1, float(others.count("x")) / 3))
        assert leave_one_out_accuracy("x", humans) == (sum(credits) / len(credits) if mask else 0.0)


def test_one_comma_only_where_asked_for():
    assert strip_punctuation("1,,0-2") == "102"
    assert strip_punctuation("1,,0-2", re.compile(r"\d,\d")) == "1  0 2"


def test_very_long_answers():
    assert normalise("The word. " * 2000).split() == ["word"] * 32 + ["word."] * 1968


def test_word_tokenize_of_llava():
    assert EvalAIAnswerProcessor().word_tokenize(" It's 1,000? ") == "it 's 1000"
