"""GQA's layout: look-ups and computations in scenes."""

from __future__ import annotations

from pathlib import Path

from dyvte.tiny.data import save_images
from dyvte.tiny.questions import Question, ask_any
from dyvte.tiny.sets.common import prepare, scenes_of, write_json, write_lines

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


def write_gqa(folder: str | Path, questions: int) -> None:
    """``questions`` questions, four to a scene, in GQA's testdev_balanced layout."""
    folder, images = prepare(folder, "data/images")
    rows, records, scenes, names = [], {}, [], []
    for scene, rng in scenes_of("gqa"):
        if len(rows) >= questions:
            break
        image = f"n{len(scenes):06d}"
        scenes.append(scene)
        names.append(f"{image}.jpg")
        asked = {q.text: q for _ in range(4) if (q := ask_any(scene, list(GQA_TYPES), rng))}
        for question in list(asked.values())[: questions - len(rows)]:
            name = f"2{len(rows):07d}"
            rows.append(
                {"question_id": name, "image": names[-1], "text": question.prompt(), "category": "default"}
            )
            records[name] = _gqa_record(question, image)
    save_images(scenes, [images / name for name in names])
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
