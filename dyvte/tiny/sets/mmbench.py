"""MMBench's layout: choices in a table with the images inside, asked again with every rotation of the options.

Registered in ``dyvte/tiny/sets/__init__.py``.
"""

from __future__ import annotations

import base64
import csv
from pathlib import Path
from typing import Any

from dyvte.tiny.scenes import Scene, encode
from dyvte.tiny.sets.options import Choice, choices
from dyvte.tiny.sets.scienceqa import narrowing_hint

COLUMNS = (
    "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category",
    "comment", "split",
)  # fmt: skip
ROUND = 1_000_000
"""What each rotation adds to the index of a question."""

_SINGLE, _CROSS = "finegrained_perception (instance-level)", "finegrained_perception (cross-instance)"
FORMS = (
    ("digit_at", 4, False, "ocr", _SINGLE),
    ("count_all", 4, False, "image_scene", "coarse_perception"),
    ("digit_at", 4, False, "object_localization", _SINGLE),
    ("neighbor", 4, False, "spatial_relationship", _CROSS),
    ("digit_at", 3, False, "object_localization", _SINGLE),
    ("parity", 2, False, "physical_property_reasoning", "attribute_reasoning"),
    ("digit_at", 4, True, "ocr", _SINGLE),
    ("add", 4, False, "structuralized_imagetext_understanding", "logic_reasoning"),
    ("color_at", 4, False, "attribute_recognition", _SINGLE),
    ("larger", 4, False, "attribute_comparison", _CROSS),
    ("digit_at", 4, False, "ocr", _SINGLE),
    ("count_side", 4, False, "physical_relation", "relation_reasoning"),
)
"""What is asked in turn: kind, options, whether with a hint, category, level-2 category."""


def write_mmbench(folder: Path, questions: int) -> None:
    """About ``questions`` rows, as whole questions of two to four rotations."""
    chosen: list[tuple[Choice, dict]] = []
    scenes: list[Scene] = []
    total = 0
    for (_, _, hinted, category, level2), choice, scene, rng in choices("mmbench", FORMS, questions):
        hint = narrowing_hint(choice, rng) if hinted else ""
        scenes.append(scene)
        chosen.append((choice, {"hint": hint, "category": category, "l2-category": level2}))
        total += len(choice.options)
        if total >= questions:
            break
    images = [base64.b64encode(content).decode("ascii") for content in encode(scenes)]
    rows: list[dict[Any, Any]] = [
        {**about, **_row(choice.rotated(steps), number + steps * ROUND), "image": images[number]}
        for steps in range(4)
        for number, (choice, about) in enumerate(chosen)
        if steps < len(choice.options)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "mmbench_dev_20230712.tsv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, restval="", delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _row(choice: Choice, index: int) -> dict:
    return {
        "index": index,
        "question": choice.text,
        **choice.by_letter(),
        "answer": choice.letter,
        "source": "digits",
        "split": "dev",
    }
