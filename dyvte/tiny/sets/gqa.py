"""GQA's layout: look-ups and computations in scenes.

Registered in ``dyvte/tiny/sets/__init__.py``.
"""

from __future__ import annotations

from pathlib import Path

from dyvte.tiny.questions import Question
from dyvte.tiny.scenes import save_images
from dyvte.tiny.sets.common import asked_together, row, write_json, write_lines

GQA_TYPES = {
    "digit_at": ("query", "obj"),
    "color_at": ("query", "attr"),
    "color_of": ("query", "attr"),
    "digit_of": ("query", "obj"),
    "place": ("query", "rel"),
    "count_color": ("query", "attr"),
    "count_all": ("query", "global"),
    "neighbor": ("query", "rel"),
    "count_side": ("query", "rel"),
    "higher": ("choose", "rel"),
    "add": ("query", "obj"),
    "larger": ("compare", "obj"),
    "parity": ("choose", "attr"),
}
"""The kinds in the GQA set, with GQA's structural and semantic type."""


def write_gqa(folder: Path, questions: int) -> None:
    """``questions`` questions, four to a scene, in GQA's testdev_balanced layout."""
    rows, records, scenes = [], {}, {}
    for number, (scene, asked) in enumerate(asked_together("gqa", list(GQA_TYPES), questions)):
        image = f"n{number:06d}"
        scenes[folder / f"data/images/{image}.jpg"] = scene
        for question in asked:
            name = f"2{len(rows):07d}"
            rows.append(row(name, f"{image}.jpg", question.prompt()))
            records[name] = _gqa_record(question, image)
    save_images(scenes)
    write_lines(folder / "llava_gqa_testdev_balanced.jsonl", rows)
    write_json(folder / "data" / "testdev_balanced_questions.json", records)


def _gqa_record(question: Question, image: str) -> dict:
    structural, semantic = GQA_TYPES[question.kind]
    return {
        "question": question.text,
        "answer": question.answer,
        "imageId": image,
        "isBalanced": True,
        "groups": {"global": question.kind, "local": None},
        "types": {"structural": structural, "semantic": semantic, "detailed": question.kind},
        "entailed": [],
        "equivalent": [],
        "semantic": [
            {"operation": "select", "argument": "digit", "dependencies": []},
            {"operation": structural, "argument": question.kind, "dependencies": [0]},
        ],
    }
