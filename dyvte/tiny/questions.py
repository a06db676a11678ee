"""Questions about a scene, with the answer that the scene gives.

A kind is a function ``(scene, rng) -> (question, answer) | None``; None when this scene has no unambiguous
question of the kind. Answers are drawn first and evenly where a scene allows it, so that guessing without the
image gains little. Kinds differ in what they need: a look-up, a search, a count, a relation, several digits,
or arithmetic on what was read.

Called throughout :mod:`dyvte.tiny`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from operator import attrgetter
from typing import TypeVar

import numpy as np

from dyvte.tiny.scenes import COLORS, Scene, Thing

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."
"""LLaVA-1.5's two format instructions, to the letter."""

Asked = tuple[str, str]
Kind = Callable[[Scene, np.random.Generator], Asked | None]
Things = Callable[[Scene], Sequence[Thing]]
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
    tried = (ask(scene, kinds[int(index)], rng) for index in rng.permutation(len(kinds)))
    return next(filter(None, tried), None)


def about(things: Things, text: str, answer: Callable[..., object], differ: str = "") -> Kind:
    """A kind that asks about one of these things, or about two that differ in an attribute, in either order.

    Args:
        text: the question, with ``{0}`` for the thing, ``{1}`` for the second.
        answer: from the thing, or from both.
    """

    def kind(scene: Scene, rng: np.random.Generator) -> Asked | None:
        groups = permutations(things(scene), 2 if differ else 1)
        fitting = [group for group in groups if not differ or len({getattr(t, differ) for t in group}) == 2]
        chosen = pick(fitting, rng)
        return (text.format(*chosen), str(answer(*chosen))) if chosen else None

    return kind


every: Things = attrgetter("things")
"""All things; a place singles one out."""


def only(attribute: str) -> Things:
    """Things that this attribute singles out, because no other thing of the scene has the same."""

    def single(scene: Scene) -> list[Thing]:
        counts = Counter(getattr(thing, attribute) for thing in scene.things)
        return [thing for thing in scene.things if counts[getattr(thing, attribute)] == 1]

    return single


def presence(scene: Scene, rng: np.random.Generator) -> Asked:
    """Whether a colored digit is there; half are, and the others mostly mix what is there."""
    if rng.random() < 0.5:
        return presence_question(pick(scene.things, rng).name), "yes"
    mixed = absent_mixtures(scene)
    absent = mixed if mixed and rng.random() < 0.7 else _absent(scene, COLORS, range(10))
    return presence_question(pick(absent, rng)), "no"


def presence_question(name: str) -> str:
    """POPE's question about a thing."""
    return f"Is there a {name} in the image?"


def absent_mixtures(scene: Scene) -> list[str]:
    """Names of things that are not there although their color and their digit are."""
    colors, digits = ({getattr(thing, part) for thing in scene.things} for part in ("color", "digit"))
    return _absent(scene, sorted(colors), sorted(digits))


def _absent(scene: Scene, colors: Sequence[str], digits: Sequence[int]) -> list[str]:
    present = {thing.name for thing in scene.things}
    return [name for color in colors for digit in digits if (name := f"{color} {digit}") not in present]


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
    digit_at = {(thing.row, thing.column): thing.digit for thing in scene.things}
    offers = [
        (f"What digit is directly {words} the {thing.name}?", str(digit_at[place]))
        for thing in only("name")(scene)
        for words, rows, columns in _DIRECTIONS
        if (place := (thing.row + rows, thing.column + columns)) in digit_at
    ]
    return pick(offers, rng)


def count_side(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """How many things lie to one side of a thing."""
    offers = {
        f"How many digits are {words} the {thing.name}?": sum(
            (other.row - thing.row) * rows + (other.column - thing.column) * columns > 0
            for other in scene.things
        )
        for thing in only("name")(scene)
        for words, rows, columns in _DIRECTIONS
    }
    question = _pick_evenly(offers, rng) if offers else None
    return (question, str(offers[question])) if question else None


def read_line(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """All digits of a row from left to right, or of a column from top to bottom."""
    lines = [
        (
            f"Read the digits in the {word} {line}.",
            [t.digit for t in scene.things if getattr(t, line) == place],
        )
        for line, words in {"row": ("top", "middle", "bottom"), "column": ("left", "center", "right")}.items()
        for place, word in enumerate(words)
    ]
    chosen = pick([line for line in lines if len(line[1]) >= 2], rng)
    return (chosen[0], " ".join(map(str, chosen[1]))) if chosen else None


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


def _even_or_odd(digit: int) -> str:
    return "odd" if digit % 2 else "even"


def _higher(a: Thing, b: Thing) -> int:
    return a.digit if a.row < b.row else b.digit


def _larger(a: Thing, b: Thing) -> int:
    return max(a.digit, b.digit)


def _sum(a: Thing, b: Thing) -> int:
    return a.digit + b.digit


KINDS: dict[str, Kind] = {
    "digit_at": about(every, "What digit is in the {0.position}?", lambda thing: thing.digit),
    "color_at": about(every, "What color is the digit in the {0.position}?", lambda thing: thing.color),
    "color_of": about(only("digit"), "What color is the {0.digit}?", lambda thing: thing.color),
    "digit_of": about(only("color"), "What digit is {0.color}?", lambda thing: thing.digit),
    "place": about(only("name"), "Where is the {0.name}?", lambda thing: thing.position),
    **{kind.__name__: kind for kind in (presence, count_color, count_all, neighbor, count_side)},
    "higher": about(only("digit"), "Which digit is higher, {0.digit} or {1.digit}?", _higher, differ="row"),
    "read_line": read_line,
    "add": about(
        only("color"), "What is the {0.color} digit plus the {1.color} digit?", _sum, differ="color"
    ),
    "larger": about(every, "Which digit is larger, {0.position} or {1.position}?", _larger, differ="digit"),
    "parity": about(every, "Is the digit in the {0.position} even or odd?", lambda t: _even_or_odd(t.digit)),
    **{kind.__name__: kind for kind in (choice, arithmetic)},
}
"""All kinds; ``KIND_WEIGHTS`` of ``data.py`` and the seeds of scenes go by their order."""

# words, rows, columns
_DIRECTIONS = (("left of", 0, -1), ("right of", 0, 1), ("above", -1, 0), ("below", 1, 0))


def pick(options: Sequence[T], rng: np.random.Generator) -> T:
    """One of the options; None when there are none."""
    return options[int(rng.integers(len(options)))] if options else None  # type: ignore[return-value]


def _pick_evenly(answers: dict[str, int], rng: np.random.Generator) -> str:
    """One of the keys, so that each value that occurs is equally likely."""
    value = pick(sorted(set(answers.values())), rng)
    return pick([key for key, answer in answers.items() if answer == value], rng)
