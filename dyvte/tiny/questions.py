"""Questions about a scene, with the answer that the scene gives.

A kind is a function ``(scene, rng) -> (question, answer) | None``; None when this scene has no unambiguous
question of the kind. Answers are drawn first and evenly where a scene allows it, so that guessing without the
image gains little. Kinds differ in what they need: a look-up, a search, a count, a relation, several digits,
or arithmetic on what was read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dyvte.tiny.scenes import COLORS, Scene, Thing

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."
"""LLaVA-1.5's two format instructions, to the letter."""

Asked = tuple[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question without its format instruction, its answer, and the name of its kind."""

    text: str
    answer: str
    kind: str

    def prompt(self) -> str:
        """The question as the model is asked it: on a new line follows the format instruction."""
        return f"{self.text}\n{LETTER_ANSWER if self.kind == 'choice' else SHORT_ANSWER}"


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """A question of this kind, or None when the scene allows none.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no question kind {kind!r}: use one of {', '.join(KINDS)}")
    asked = KINDS[kind](scene, rng)
    return Question(*asked, kind) if asked else None


def ask_any(scene: Scene, kinds: Sequence[str], rng: np.random.Generator) -> Question | None:
    """A question of one of the kinds, tried in random order; None when the scene allows none of them."""
    for index in rng.permutation(len(kinds)):
        question = ask(scene, kinds[int(index)], rng)
        if question:
            return question
    return None


def digit_at(scene: Scene, rng: np.random.Generator) -> Asked:
    """What stands at a place."""
    thing = pick(scene.things, rng)
    return f"What digit is in the {thing.position}?", str(thing.digit)


def color_at(scene: Scene, rng: np.random.Generator) -> Asked:
    """The color at a place."""
    thing = pick(scene.things, rng)
    return f"What color is the digit in the {thing.position}?", thing.color


def color_of(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """The color of a digit that occurs once."""
    thing = pick(_single(scene, lambda thing: thing.digit), rng)
    return (f"What color is the {thing.digit}?", thing.color) if thing else None


def digit_of(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """The digit in a color that occurs once."""
    thing = pick(_single(scene, lambda thing: thing.color), rng)
    return (f"What digit is {thing.color}?", str(thing.digit)) if thing else None


def place(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Where a thing is."""
    thing = pick(_named(scene), rng)
    return (f"Where is the {thing.name}?", thing.position) if thing else None


def presence(scene: Scene, rng: np.random.Generator) -> Asked:
    """Whether a colored digit is there; half are, and the others mostly mix what is there."""
    if rng.random() < 0.5:
        return presence_question(pick(scene.things, rng).name), "yes"
    mixed = absent_mixtures(scene)
    everything = [f"{color} {digit}" for color in COLORS for digit in range(10)]
    present = {thing.name for thing in scene.things}
    absent = mixed if mixed and rng.random() < 0.7 else [name for name in everything if name not in present]
    return presence_question(pick(absent, rng)), "no"


def presence_question(name: str) -> str:
    """POPE's question about a thing."""
    return f"Is there a {name} in the image?"


def absent_mixtures(scene: Scene) -> list[str]:
    """Names of things that are not there although their color and their digit are."""
    present = {thing.name for thing in scene.things}
    colors = sorted({thing.color for thing in scene.things})
    numbers = sorted({thing.digit for thing in scene.things})
    return [f"{c} {d}" for c in colors for d in numbers if f"{c} {d}" not in present]


def count_color(scene: Scene, rng: np.random.Generator) -> Asked:
    """How many things have a color."""
    counts = Counter(thing.color for thing in scene.things)
    color = _pick_evenly({color: counts[color] for color in COLORS}, rng)
    return f"How many digits are {color}?", str(counts[color])


def count_all(scene: Scene, rng: np.random.Generator) -> Asked:
    """How many things there are."""
    return "How many digits are there?", str(len(scene.things))


def neighbor(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """What is next to a thing."""
    offers = []
    for thing in _named(scene):
        for words, rows, columns in _DIRECTIONS:
            row, column = thing.row + rows, thing.column + columns
            other = scene.at.get(3 * row + column) if 0 <= row < 3 and 0 <= column < 3 else None
            if other:
                offers.append((f"What digit is directly {words} the {thing.name}?", str(other.digit)))
    return pick(offers, rng)


def count_side(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """How many things lie to one side of a thing."""
    offers: dict[str, int] = {}
    for thing in _named(scene):
        for words, rows, columns in _DIRECTIONS:
            offers[f"How many digits are {words} the {thing.name}?"] = sum(
                (other.row - thing.row) * rows + (other.column - thing.column) * columns > 0
                for other in scene.things
            )
    question = _pick_evenly(offers, rng) if offers else None
    return (question, str(offers[question])) if question else None


def higher(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Which of two digits is higher up."""
    pair = _pick_pair(_single(scene, lambda thing: thing.digit), lambda a, b: a.row != b.row, rng)
    if not pair:
        return None
    answer = min(pair, key=lambda thing: thing.row)
    return f"Which digit is higher, {pair[0].digit} or {pair[1].digit}?", str(answer.digit)


def read_line(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """All digits of a row from left to right, or of a column from top to bottom."""
    rows, columns = ("top", "middle", "bottom"), ("left", "center", "right")
    lines = [
        *(
            (f"{name} row", [thing for thing in scene.things if thing.row == i])
            for i, name in enumerate(rows)
        ),
        *((f"{name} column", [t for t in scene.things if t.column == i]) for i, name in enumerate(columns)),
    ]
    chosen = pick([line for line in lines if len(line[1]) >= 2], rng)
    if not chosen:
        return None
    return f"Read the digits in the {chosen[0]}.", " ".join(str(thing.digit) for thing in chosen[1])


def add(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """The sum of two digits, named by their colors, which occur once."""
    pair = _pick_pair(_single(scene, lambda thing: thing.color), lambda a, b: True, rng)
    if not pair:
        return None
    a, b = pair
    return f"What is the {a.color} digit plus the {b.color} digit?", str(a.digit + b.digit)


def larger(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """The larger of two digits, named by their places."""
    pair = _pick_pair(scene.things, lambda a, b: a.digit != b.digit, rng)
    if not pair:
        return None
    answer = max(pair, key=lambda thing: thing.digit)
    return f"Which digit is larger, {pair[0].position} or {pair[1].position}?", str(answer.digit)


def parity(scene: Scene, rng: np.random.Generator) -> Asked:
    """Whether the digit at a place is even or odd."""
    thing = pick(scene.things, rng)
    return f"Is the digit in the {thing.position} even or odd?", _even_or_odd(thing.digit)


def choice(scene: Scene, rng: np.random.Generator) -> Asked:
    """The digit at a place, among four options; the answer is a letter."""
    thing = pick(scene.things, rng)
    others = [digit for digit in range(10) if digit != thing.digit]
    options = [thing.digit, *rng.permutation(others)[:3].tolist()]
    options = [options[index] for index in rng.permutation(4)]
    listed = "\n".join(f"{letter}. {digit}" for letter, digit in zip("ABCD", options, strict=True))
    return f"What digit is in the {thing.position}?\n{listed}", "ABCD"[options.index(thing.digit)]


def arithmetic(scene: Scene, rng: np.random.Generator) -> Asked:
    """A sum, a comparison or a parity of given numbers; the image does not matter."""
    a, b = rng.permutation(10)[:2].tolist()
    offers = [
        (f"What is {a} plus {b}?", str(a + b)),
        (f"Which is larger, {a} or {b}?", str(max(a, b))),
        (f"Is {a} even or odd?", _even_or_odd(a)),
    ]
    return pick(offers, rng)


KINDS: dict[str, Callable[[Scene, np.random.Generator], Asked | None]] = {
    function.__name__: function
    for function in (
        digit_at, color_at, color_of, digit_of, place, presence, count_color, count_all,
        neighbor, count_side, higher, read_line, add, larger, parity, choice, arithmetic,
    )
}  # fmt: skip
TEXT_ONLY = ("arithmetic",)
"""Kinds that can be answered without the image."""

_DIRECTIONS = (
    ("left of", 0, -1),
    ("right of", 0, 1),
    ("above", -1, 0),
    ("below", 1, 0),
)  # words, rows, columns


def _even_or_odd(digit: int) -> str:
    return "odd" if digit % 2 else "even"


def pick(options: Sequence[T], rng: np.random.Generator) -> T:
    """One of the options; None when there are none."""
    return options[int(rng.integers(len(options)))] if options else None  # type: ignore[return-value]


def _pick_evenly(answers: dict[str, int], rng: np.random.Generator) -> str:
    """One of the keys, so that each value that occurs is equally likely."""
    value = pick(sorted(set(answers.values())), rng)
    return pick([key for key, answer in answers.items() if answer == value], rng)


def _pick_pair(
    things: Sequence[Thing], fits: Callable[[Thing, Thing], bool], rng: np.random.Generator
) -> tuple[Thing, Thing] | None:
    """Two different things, in either order, that fit together."""
    return pick([(a, b) for a in things for b in things if a is not b and fits(a, b)], rng)


def _single(scene: Scene, key: Callable[[Thing], object]) -> list[Thing]:
    """Things whose key no other thing of the scene has."""
    counts = Counter(key(thing) for thing in scene.things)
    return [thing for thing in scene.things if counts[key(thing)] == 1]


def _named(scene: Scene) -> list[Thing]:
    """Things that color and digit together single out."""
    return _single(scene, lambda thing: thing.name)
