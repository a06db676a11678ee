"""What the sets share: questions about scenes of the evaluation writers, and LLaVA's kinds of files.

Called throughout :mod:`dyvte.tiny`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dyvte.io import write_whole
from dyvte.tiny.questions import Question, ask_any
from dyvte.tiny.scenes import Scene, draw

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_SETS = "gqa pope textvqa heldout vqav2 vqav2_test sqa mme mmbench seed mmvet"
_SEEDS = {name: seed for seed, name in enumerate(_SETS.split(), start=1)}
_PER_SCENE = 4

Form = TypeVar("Form")
Found = TypeVar("Found")


def scenes_of(name: str) -> Iterator[tuple[Scene, np.random.Generator]]:
    """Endless scenes of the evaluation writers for a set, each with randomness of its own."""
    for index in count():
        yield draw("eval", _SEEDS[name], index), np.random.default_rng((_SEEDS[name], index, 2))


def generator_of(name: str) -> np.random.Generator:
    """Randomness for what concerns a set as a whole."""
    return np.random.default_rng((_SEEDS[name], 3))


def asked(
    name: str,
    forms: Iterable[Form],
    ask: Callable[[Scene, Form, np.random.Generator], Found | None],
    count: int,
) -> Iterator[tuple[Form, Found, Scene, np.random.Generator]]:
    """``count`` questions of a set, one form after the other, each about the next scene that allows it."""
    scenes = scenes_of(name)
    for form in islice(cycle(forms), count):
        for scene, rng in scenes:
            if question := ask(scene, form, rng):
                yield form, question, scene, rng
                break


def asked_together(name: str, kinds: Sequence[str], count: int) -> Iterator[tuple[Scene, list[Question]]]:
    """``count`` questions of a set in all, up to four different ones of these kinds about each scene."""
    for scene, rng in scenes_of(name):
        found = {q.text: q for _ in range(_PER_SCENE) if (q := ask_any(scene, kinds, rng))}
        questions = list(found.values())[:count]
        yield scene, questions
        count -= len(questions)
        if not count:
            break


def row(question_id: int | str, image: str, text: str, category: str = "default") -> dict:
    """A question in LLaVA's JSON lines."""
    return {"question_id": question_id, "image": image, "text": text, "category": category}


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """Write JSON lines."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one line."""
    write_whole(path, json.dumps(content))
