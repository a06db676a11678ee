"""ScienceQA's layout: questions with two to five options, with an image or without, with a hint or without.

Called by :mod:`dyvte.tiny.sets.mmbench`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dyvte.tiny.questions import pick
from dyvte.tiny.scenes import Scene, save_images
from dyvte.tiny.sets.common import write_json
from dyvte.tiny.sets.options import Choice, choices

SPLITS = ("train", "val", "test", "trainval", "minitrain", "minival", "minitest")
_MINI = 20


class Form(NamedTuple):
    """A sort of question.

    Attributes:
        hint: "narrow" names two options, one of them right; "told" says what the scene shows.
    """

    kind: str
    size: int
    image: bool
    hint: str
    grade: int
    subject: str
    topic: str
    skill: str


_LOOK, _TEXT = "Read a digit in a picture", "Answer from a text"
FORMS = (
    Form("digit_at", 4, True, "", 1, "natural science", "observation", _LOOK),
    Form("arithmetic", 4, False, "", 2, "natural science", "measurement", "Calculate"),
    Form("digit_at", 4, True, "narrow", 3, "natural science", "observation", _LOOK),
    Form("digit_of", 4, False, "told", 4, "language science", "reading-comprehension", _TEXT),
    Form("digit_at", 4, True, "", 5, "natural science", "observation", _LOOK),
    Form("color_at", 5, True, "", 6, "natural science", "materials", "Tell colors apart"),
    Form("higher", 2, True, "", 7, "social science", "geography", "Read a map"),
    Form("digit_at", 4, True, "", 8, "natural science", "observation", _LOOK),
    Form("place", 4, False, "told", 9, "language science", "reading-comprehension", _TEXT),
    Form("count_color", 3, True, "", 10, "natural science", "measurement", "Count in a picture"),
)
"""What is asked in turn. The model was trained on "digit_at" with four options and no hint only."""


def write_sqa(folder: Path, questions: int) -> None:
    """``questions`` of the test split; the other splits are empty, except for minitest, its first twenty."""
    problems, rows, scenes = {}, [], {}
    for number, (form, choice, scene, rng) in enumerate(choices("sqa", FORMS, questions), start=1):
        pid, hint = str(number), _hint(form, scene, choice, rng)
        problems[pid] = _problem(form, choice, hint)
        rows.append(_row(pid, form, choice, hint))
        if form.image:
            scenes[folder / "images/test" / pid / "image.png"] = scene
    save_images(scenes, "PNG")
    splits = {split: [] for split in SPLITS} | {"test": [*problems], "minitest": [*problems][:_MINI]}
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", splits)
    write_json(folder / "llava_test_CQM-A.json", rows)


def _hint(form: Form, scene: Scene, choice: Choice, rng: np.random.Generator) -> str:
    if form.hint == "told":
        return f"A picture shows {scene.caption()}."
    return narrowing_hint(choice, rng) if form.hint else ""


def narrowing_hint(choice: Choice, rng: np.random.Generator) -> str:
    """A hint that leaves two options: the right one and another, in either order."""
    wrong = [option for place, option in enumerate(choice.options) if place != choice.right]
    pair = [choice.options[choice.right], pick(wrong, rng)]
    first, second = (pair[index] for index in rng.permutation(2))
    return f"It is {first} or {second}."


def _problem(form: Form, choice: Choice, hint: str) -> dict:
    return {
        "question": choice.text,
        "choices": list(choice.options),
        "answer": choice.right,
        "hint": hint,
        "image": "image.png" if form.image else None,
        "task": "closed choice",
        "grade": f"grade{form.grade}",
        "subject": form.subject,
        "topic": form.topic,
        "category": form.topic.replace("-", " ").capitalize(),
        "skill": form.skill,
        "lecture": "",
        "solution": f"The answer is {choice.options[choice.right]}.",
        "split": "test",
    }


def _row(pid: str, form: Form, choice: Choice, hint: str) -> dict:
    asked = "\n".join([f"Context: {hint}", choice.listed()] if hint else [choice.listed()])
    turns = [
        {"from": "human", "value": f"<image>\n{asked}" if form.image else asked},
        {"from": "gpt", "value": choice.letter},
    ]
    image = {"image": f"{pid}/image.png"} if form.image else {}
    return {"id": pid, **image, "conversations": turns}
