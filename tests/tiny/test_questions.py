"""Questions: right by an independent reading of the scene, unambiguous, and hard to guess."""

from collections import Counter

import numpy as np
import pytest

from dyvte.tiny.questions import KINDS, LETTER_ANSWER, SHORT_ANSWER, Question, ask
from dyvte.tiny.scenes import Scene, Thing, draw


def scene_of(*things: tuple[int, int, str]) -> Scene:
    return Scene(tuple(Thing(cell, digit, color, 0) for cell, digit, color in things), "train", (0, 0, 0), ())


SCENE = scene_of((0, 3, "red"), (1, 7, "blue"), (4, 3, "blue"), (5, 8, "red"), (6, 2, "green"))
# 3r 7b .
# .  3b 8r
# 2g .  .

ANSWERS = {
    "What digit is in the top left?": "3",
    "What digit is in the center?": "3",
    "What color is the digit in the middle right?": "red",
    "What color is the 7?": "blue",
    "What digit is green?": "2",
    "Where is the blue 3?": "center",
    "Is there a blue 3 in the image?": "yes",
    "Is there a green 3 in the image?": "no",
    "How many digits are red?": "2",
    "How many digits are white?": "0",
    "How many digits are there?": "5",
    "What digit is directly below the blue 7?": "3",
    "What digit is directly right of the red 3?": "7",
    "What digit is directly left of the red 8?": "3",
    "What digit is directly above the blue 3?": "7",
    "How many digits are left of the blue 3?": "2",
    "How many digits are below the red 3?": "3",
    "How many digits are above the green 2?": "4",
    "How many digits are right of the green 2?": "3",
    "Which digit is higher, 8 or 7?": "7",
    "Which digit is higher, 2 or 8?": "8",
    "Read the digits in the top row.": "3 7",
    "Read the digits in the center column.": "7 3",
    "Which digit is larger, bottom left or top left?": "3",
    "Is the digit in the middle right even or odd?": "even",
    "Is the digit in the top center even or odd?": "odd",
}


@pytest.fixture(scope="module")
def asked() -> dict[str, str]:
    """Every question that 200 draws of each kind ask about SCENE."""
    rng = np.random.default_rng(0)
    questions = [ask(SCENE, kind, rng) for kind in KINDS for _ in range(200)]
    return {question.text: question.answer for question in questions if question}


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_what_the_scene_shows(asked: dict[str, str], text: str) -> None:
    assert asked[text] == ANSWERS[text]


def test_nothing_ambiguous_is_asked(asked: dict[str, str]) -> None:
    assert "What color is the 3?" not in asked  # there are two
    assert "What digit is red?" not in asked
    assert not any(text.startswith("Read the digits in the bottom") for text in asked)  # one digit is no line
    assert not any("plus" in text and "digit" in text for text in asked)  # only one color occurs once


def test_sum_names_two_colors() -> None:
    question = ask(
        scene_of((0, 9, "red"), (8, 8, "white"), (2, 1, "blue"), (3, 1, "blue")),
        "add",
        np.random.default_rng(1),
    )
    assert question is not None and question.answer == "17"
    assert question.text in {
        "What is the red digit plus the white digit?",
        "What is the white digit plus the red digit?",
    }


def test_choice_letter_points_to_the_digit() -> None:
    for seed in range(50):
        question = ask(SCENE, "choice", np.random.default_rng(seed))
        text, *options = question.text.split("\n")
        position = text.removeprefix("What digit is in the ").removesuffix("?")
        (wanted,) = (thing.digit for thing in SCENE.things if thing.position == position)
        letters = dict(option.split(". ") for option in options)
        assert list(letters) == list("ABCD") and len(set(letters.values())) == 4
        assert letters[question.answer] == str(wanted)


def test_prompts_end_with_llavas_instructions() -> None:
    assert SHORT_ANSWER == "Answer the question using a single word or phrase."
    assert LETTER_ANSWER == "Answer with the option's letter from the given choices directly."
    assert Question("Q?", "A", "choice").prompt() == f"Q?\n{LETTER_ANSWER}"
    assert Question("Q?", "3", "digit_at").prompt() == f"Q?\n{SHORT_ANSWER}"


def test_a_guess_without_the_image_is_near_chance() -> None:
    """The commonest answer to each question text (positions and names masked) is rarely right."""
    limits = {"presence": 0.6, "parity": 0.6, "arithmetic": 1.0, "count_color": 0.45, "higher": 0.25}
    answers: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    for index in range(600):
        scene, rng = draw("train", 3, index), np.random.default_rng(index)
        for kind in KINDS:
            question = ask(scene, kind, rng)
            if question:
                answers[kind][question.answer] += 1
    for kind, counts in answers.items():
        share = counts.most_common(1)[0][1] / counts.total()
        assert share < limits.get(kind, 0.36), (kind, counts.most_common(3))


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="question kind 'color'"):
        ask(SCENE, "color", np.random.default_rng(0))
