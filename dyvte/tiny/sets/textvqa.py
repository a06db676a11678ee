"""TextVQA's layout: reading a row or a column.

Registered in ``dyvte/tiny/sets/__init__.py``.
"""

from __future__ import annotations

from pathlib import Path

from dyvte.tiny.questions import ask
from dyvte.tiny.scenes import save_images
from dyvte.tiny.sets.common import asked, row, write_json, write_lines


def write_textvqa(folder: Path, questions: int) -> None:
    """A row or column to read in each of ``questions`` scenes, in TextVQA's layout, without OCR tokens."""
    rows, annotations, scenes = [], [], {}
    drawn = asked("textvqa", ["read_line"], ask, questions)
    for number, (_, question, scene, _) in enumerate(drawn):
        image = f"{number:016x}"
        scenes[folder / f"train_images/{image}.jpg"] = scene
        rows.append(row(image, f"{image}.jpg", question.prompt()))
        about = {"image_id": image, "question": question.text.lower(), "question_id": number}
        annotations.append({**about, "answers": [question.answer] * 10})
    save_images(scenes)
    write_lines(folder / "llava_textvqa_val_v051_ocr.jsonl", rows)
    write_json(folder / "TextVQA_0.5.1_val.json", {"data": annotations})
