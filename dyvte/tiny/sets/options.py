"""Multiple choice from open questions, in the form of the kind "choice" that the model was trained on.

That kind asks only for the digit at a place, with four options. Other questions and other numbers of options in
the same form are new to the model.

Called throughout :mod:`dyvte.tiny`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dyvte.tiny.questions import LETTER_ANSWER, Question, ask
from dyvte.tiny.scenes import COLORS, POSITIONS, Scene
from dyvte.tiny.sets.common import asked, generator_of

Form = TypeVar("Form", bound=tuple[Any, ...])
_NEAR = 3  # how far a wrong number may be from the right one


@dataclass(frozen=True)
class Choice:
    """A question with two to five options; ``right`` is the place of the right one."""

    text: str
    options: tuple[str, ...]
    right: int

    @property
    def letter(self) -> str:
        return "ABCDE"[self.right]

    def listed(self) -> str:
        """The question, then a line for each option, such as "A. 3"."""
        return "\n".join([self.text, *(f"{letter}. {option}" for letter, option in self.by_letter().items())])

    def by_letter(self) -> dict[str, str]:
        return dict(zip("ABCDE", self.options, strict=False))

    def prompt(self) -> str:
        """As the model is asked it, with the format instruction."""
        return f"{self.listed()}\n{LETTER_ANSWER}"

    def rotated(self, steps: int) -> Choice:
        """The options moved right by so many places; what falls off comes back as A."""
        places = len(self.options)
        moved = tuple(self.options[(place - steps) % places] for place in range(places))
        return Choice(self.text, moved, (self.right + steps) % places)


def choices(
    name: str, forms: Iterable[Form], count: int
) -> Iterator[tuple[Form, Choice, Scene, np.random.Generator]]:
    """``count`` questions of a set; the right one is at each place equally often among those with as many options.

    Args:
        forms: what is asked in turn. Each begins with the kind and the number of options, of which there are fewer
            where a question names all that can be meant.
    """
    letters, left = generator_of(name), defaultdict[int, list[int]](list)
    drawn = asked(name, forms, lambda scene, form, rng: ask(scene, form[0], rng), count)
    for form, question, scene, rng in drawn:
        others = wrong_answers(question)
        picked = [others[index] for index in rng.permutation(len(others))[: form[1] - 1]]
        places = left[len(picked)]
        if not places:
            places += letters.permutation(len(picked) + 1).tolist()
        right = places.pop()
        options = (*picked[:right], question.answer, *picked[right:])
        yield form, Choice(question.text, options, right), scene, rng


def wrong_answers(question: Question) -> list[str]:
    """Wrong answers to an open question that are of the same sort as the right one.

    Numbers of things and sums come with their neighbours, a row of digits with one digit changed.

    Raises:
        ValueError: a question of the kind "choice", which has options already.
    """
    text, answer = question.text, question.answer
    if question.kind == "choice":
        raise ValueError(f"this question has options already: {text}")
    if answer in COLORS:
        pool = list(COLORS)
    elif answer in POSITIONS:
        pool = list(POSITIONS)
    elif text.endswith("even or odd?"):
        pool = ["even", "odd"]
    elif named := re.search(r", (\d) or (\d)\?$", text):
        pool = list(named.groups())
    elif question.kind == "read_line":
        pool = _misread(answer)
    elif question.kind.startswith("count") or "plus" in text:
        pool = [str(number) for number in range(max(0, int(answer) - _NEAR), int(answer) + _NEAR + 1)]
    else:
        pool = [str(digit) for digit in range(10)]
    return [other for other in pool if other != answer]


def _misread(line: str) -> list[str]:
    """The rows of digits that differ from this one in one digit."""
    digits = line.split()
    return [
        " ".join([*digits[:place], str(wrong), *digits[place + 1 :]])
        for place, digit in enumerate(digits)
        for wrong in range(10)
        if str(wrong) != digit
    ]
