"""Answers in fuller language: right, complete, and of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dyvte.tiny import data
from dyvte.tiny.language import DESCRIBE, EXPLAIN, describe, explanation, sentence, spoken
from dyvte.tiny.questions import KINDS, LETTER_ANSWER, SHORT_ANSWER, Question, ask
from dyvte.tiny.scenes import Scene, Thing, draw

SCENE = Scene(
    (Thing(0, 3, "red", 0), Thing(4, 7, "blue", 0), Thing(8, 2, "red", 0)), split="train", key=(0,), looks=()
)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "choice"])
def test_every_kind_has_a_sentence_with_its_answer(kind):
    for index in range(30):
        if question := ask(draw("train", 1, index), kind, np.random.default_rng(index)):
            said = sentence(question)
            assert said is not None and said.endswith(".") and "{" not in said
            words = {"yes": "There is a ", "no": "There is no "}.get(question.answer, question.answer)
            assert words in said


def test_a_choice_is_answered_by_its_letter():
    question = ask(SCENE, "choice", np.random.default_rng(0))
    assert question is not None and sentence(question) is None


@pytest.mark.parametrize(
    "kind, text, answer, why",
    [
        ("parity", "Is the digit in the center even or odd?", "odd", "The digit in the center is a 7, and 7 is odd."),
        ("larger", "Which digit is larger, top left or bottom right?", "3",
         "The digit in the top left is a 3 and the digit in the bottom right is a 2, so 3 is larger."),
        ("higher", "Which digit is higher, 7 or 3?", "3",
         "The 7 is in the center and the 3 is in the top left, so the 3 is higher."),
        ("count_color", "How many digits are red?", "2",
         "The red digits are the 3 in the top left and the 2 in the bottom right, so there are 2."),
        ("count_color", "How many digits are green?", "0", None),
        ("place", "Where is the blue 7?", "center", None),
    ],
)  # fmt: skip
def test_explanations_say_what_the_answer_follows_from(kind, text, answer, why):
    assert explanation(SCENE, Question(text, answer, kind)) == why


def test_a_sum_is_explained():
    scene = Scene(SCENE.things[:2], "train", (0,), ())
    question = Question("What is the blue digit plus the red digit?", "10", "add")
    assert explanation(scene, question) == (
        "The blue digit is a 7 and the red digit is a 3, so together they make 10."
    )


def test_a_description_names_everything():
    assert describe(SCENE) == (
        "The image shows 3 digits: a red 3 in the top left, a blue 7 in the center and a red 2 in the bottom right."
    )


def test_the_form_of_an_answer_follows_from_the_question():
    for index in range(40):
        scene, rng = draw("train", 0, index), np.random.default_rng(index)
        for text, said in spoken(scene, data.ask_many(scene, rng), rng):
            if text == DESCRIBE:
                assert said == describe(scene)
            elif text.endswith((SHORT_ANSWER, LETTER_ANSWER)):
                assert not said.endswith(".")
            else:
                assert said.endswith(".") and (text.endswith(EXPLAIN) or "\n" not in text)


def test_answers_of_ten_to_thirty_words_occur(tmp_path: Path):
    data.write(tmp_path, scenes=30, spoken=True)
    captions, talks = (
        json.loads((tmp_path / name).read_text()) for name in ("pretrain.json", "finetune.json")
    )
    assert captions[3]["conversations"][1]["value"] == describe(draw("train", 0, 3))
    turns = [turn["value"] for talk in talks for turn in talk["conversations"]]
    assert all(turn.startswith("<image>\n") for turn in turns[:1])
    lengths = [
        len(turn.split()) for talk in talks for turn in (t["value"] for t in talk["conversations"][1::2])
    ]
    assert sum(10 <= length <= 30 for length in lengths) > 0.15 * len(lengths)
