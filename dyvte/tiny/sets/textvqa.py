"""TextVQA's layout: reading a row or a column."""

from __future__ import annotations

from pathlib import Path

from dyvte.tiny.data import save_images
from dyvte.tiny.questions import ask
from dyvte.tiny.sets.common import prepare, scenes_of, write_json, write_lines


def write_textvqa(folder: str | Path, questions: int) -> None:
    """A row or column to read in each of ``questions`` scenes, in TextVQA's layout, without OCR tokens."""
    folder, images = prepare(folder, "train_images")
    rows, annotations, scenes, paths = [], [], [], []
    for scene, rng in scenes_of("textvqa"):
        if len(rows) >= questions:
            break
        question = ask(scene, "read_line", rng)
        if not question:
            continue
        image = f"{len(rows):016x}"
        scenes.append(scene)
        paths.append(images / f"{image}.jpg")
        rows.append(
            {"question_id": image, "image": f"{image}.jpg", "text": question.prompt(), "category": "default"}
        )
        annotations.append(
            {
                "image_id": image,
                "question": question.text.lower(),
                "question_id": len(rows) - 1,
                "answers": [question.answer] * 10,
            }
        )
    save_images(scenes, paths)
    write_lines(folder / "llava_textvqa_val_v051_ocr.jsonl", rows)
    write_json(folder / "TextVQA_0.5.1_val.json", {"data": annotations})
