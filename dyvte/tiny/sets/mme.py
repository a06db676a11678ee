"""MME's layout: a yes and a no question about each image, in fourteen tasks.

Seven tasks ask what the model was trained on, whether a colored digit is there, and differ in what the absent one
is like. The other seven ask yes or no in words that are new to it.

Registered in ``dyvte/tiny/sets/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from dyvte.io import write_whole
from dyvte.tiny.questions import SHORT_ANSWER, Question, absent_mixtures, ask, pick, presence_question
from dyvte.tiny.scenes import COLORS, Scene, Thing, save_images
from dyvte.tiny.sets.common import NUMBER_WORDS, asked, row, write_lines
from dyvte.tiny.sets.options import wrong_answers

RELEASE = "MME_Benchmark_release_version"
INSTRUCTION = "Please answer yes or no."
_LOOK_ALIKE = {0: 6, 6: 0, 1: 7, 7: 1, 2: 3, 3: 8, 8: 3, 4: 9, 9: 4, 5: 3}
_FEW, _MANY = 4, 6

Pair = tuple[str, str]
"""A question whose answer is yes, and one whose answer is no."""
Task = Callable[[Scene, np.random.Generator], Pair | None]


def write_mme(folder: Path, questions: int) -> None:
    """At least ``questions`` questions: equally many images in each task, two questions each."""
    release, rows, scenes = folder / RELEASE, [], {}
    numbers = range(1, -(-questions // (2 * len(TASKS))) + 1)
    forms = [(task, f"{number:04d}") for task in TASKS for number in numbers]
    drawn = asked("mme", forms, lambda scene, form, rng: TASKS[form[0]](scene, rng), len(forms))
    for (task, number), pair, scene, rng in drawn:
        images = release / task / "images" if task in WITH_SUBFOLDERS else release / task
        texts = release / task / "questions_answers_YN" if task in WITH_SUBFOLDERS else images
        image = images / f"{number}.jpg"
        scenes[image] = scene
        lines = [*zip(pair, ("Yes", "No"), strict=True)]
        lines = lines if rng.random() < 0.5 else lines[::-1]
        told = [f"{text} {INSTRUCTION}\t{label}\n" for text, label in lines]
        write_whole(texts / f"{number}.txt", "".join(told))
        name = image.relative_to(release).as_posix()
        rows += [row(name, name, f"{text}\n{SHORT_ANSWER}", task) for text, _ in lines]
    save_images(scenes)
    write_lines(folder / "llava_mme.jsonl", rows)


def _nothing_shared(scene: Scene, thing: Thing) -> list[str]:
    colors, digits = {other.color for other in scene.things}, {other.digit for other in scene.things}
    return [f"{c} {d}" for c in COLORS if c not in colors for d in range(10) if d not in digits]


ABSENT: dict[str, Callable[[Scene, Thing], list[str]]] = {
    "existence": _nothing_shared,
    "color": lambda scene, thing: [f"{color} {thing.digit}" for color in COLORS],
    "posters": lambda scene, thing: [f"{thing.color} {digit}" for digit in range(10)],
    "celebrity": lambda scene, thing: absent_mixtures(scene),
    "scene": lambda scene, thing: absent_mixtures(scene) if len(scene.things) >= _MANY else [],
    "landmark": lambda scene, thing: absent_mixtures(scene) if len(scene.things) <= _FEW else [],
    "artwork": lambda scene, thing: [f"{thing.color} {_LOOK_ALIKE[thing.digit]}"],
}
"""Tasks that ask whether a thing is there, with what is asked for in place of a present thing: what shares nothing
with any that is there, the same in another color, another digit in its color, a mixture of two things (of any scene,
of one with many things, of one with few), what looks alike.
"""


def presence(task: str, scene: Scene, rng: np.random.Generator) -> Pair | None:
    """Questions about a thing and about one that is absent; None where nothing fits that is absent."""
    thing, there = pick(scene.things, rng), {other.name for other in scene.things}
    absent = [name for name in ABSENT[task](scene, thing) if name not in there]
    return (presence_question(thing.name), presence_question(pick(absent, rng))) if absent else None


def claims(kind: str, claim: Callable[[str], str]) -> Task:
    """A task that claims a right and a wrong answer to a question of a kind; ``claim`` makes a text with ``{answer}``
    of the question's.
    """

    def task(scene: Scene, rng: np.random.Generator) -> Pair | None:
        question = ask(scene, kind, rng)
        return _claimed(question, claim(question.text), rng) if question else None

    return task


def position(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """Whether a thing is at its place, or at that of another."""
    thing = pick(scene.things, rng)
    others = [other for other in scene.things if other.name != thing.name]
    if not others:
        return None
    places = (thing.position, pick(others, rng).position)
    yes, no = (f"Is there a {thing.name} in the {place}?" for place in places)
    return yes, no


def digit_in_words(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """Another digit in the color of the present one, in words."""
    pair = presence("posters", scene, rng)
    if not pair:
        return None
    yes, no = (
        text.replace(digit := next(filter(str.isdecimal, text)), NUMBER_WORDS[int(digit)]) for text in pair
    )
    return yes, no


def grid_element(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """What an element of the grid is, rows and columns counted from zero."""
    thing = pick(scene.things, rng)
    question = Question("", str(thing.digit), "digit_at")
    return _claimed(question, f"Is grid[{thing.row}][{thing.column}] == {{answer}}?", rng)


TASKS: dict[str, Task] = {
    "existence": partial(presence, "existence"),
    "count": claims("count_all", lambda text: "Are there {answer} digits in the image?"),
    "position": position,
    **{task: partial(presence, task) for task in ABSENT},  # "existence" stays first
    "OCR": claims("read_line", lambda text: text.replace("Read", "Do").replace(".", " read {answer}?")),
    "commonsense_reasoning": claims("parity", lambda text: text.replace("even or odd", "{answer}")),
    "numerical_calculation": claims(
        "add", lambda text: text.replace("What is", "Is").replace("?", " {answer}?")
    ),
    "text_translation": digit_in_words,
    "code_reasoning": grid_element,
}
WITH_SUBFOLDERS = ("posters", "celebrity", "scene", "landmark", "artwork")
"""Tasks whose images and texts lie in folders of their own, as in the original."""


def _claimed(question: Question, claim: str, rng: np.random.Generator) -> Pair:
    """The claim with the right answer, and with a wrong one."""
    return claim.format(answer=question.answer), claim.format(answer=pick(wrong_answers(question), rng))
