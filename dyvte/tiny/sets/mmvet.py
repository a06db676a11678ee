"""MM-Vet's layout: open questions without a format instruction, each with the capabilities that it takes.

Registered in ``dyvte/tiny/sets/__init__.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dyvte.tiny.questions import Question, ask
from dyvte.tiny.scenes import Scene, save_images
from dyvte.tiny.sets.common import NUMBER_WORDS, asked, row, write_json, write_lines

CAPABILITIES = {
    "read_line": ("ocr",),
    "add": ("rec", "math"),
    "count_color": ("rec",),
    "neighbor": ("ocr", "spat"),
    "parity": ("ocr", "know"),
    "describe": ("rec", "gen", "spat"),
}
"""Kind of question -> capabilities. "describe" is a caption; the others are kinds the model was trained on."""


def write_mmvet(folder: Path, questions: int) -> None:
    """``questions`` questions, each about a scene of its own."""
    rows, records, scenes = [], {}, {}
    drawn = asked("mmvet", CAPABILITIES, _ask, questions)
    for number, (kind, question, scene, _) in enumerate(drawn):
        image = f"v1_{number}.png"
        scenes[folder / "images" / image] = scene
        rows.append(row(number, image, question.text, "conv"))
        records[f"v1_{number}"] = {
            "imagename": image,
            "question": question.text,
            "answer": _graded(question),
            "imagesource": "digits",
            "capability": list(CAPABILITIES[kind]),
        }
    save_images(scenes, "PNG")
    write_lines(folder / "llava-mm-vet.jsonl", rows)
    write_json(folder / "mm-vet.json", records)


def _ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    if kind == "describe":
        return Question("Describe the image.", scene.caption(), kind)
    return ask(scene, kind, rng)


def _graded(question: Question) -> str:
    """The answer as the grader reads it: what must all be there, or what is as good."""
    if question.kind == "describe":
        return question.answer.replace(", ", "<AND>")
    if question.kind == "count_color":
        return f"{question.answer}<OR>{NUMBER_WORDS[int(question.answer)]}"
    return question.answer
