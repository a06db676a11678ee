"""SEED-Bench's layout: choices of twelve types; those of the video types show one frame.

Registered in ``dyvte/tiny/sets/__init__.py``.
"""

from __future__ import annotations

from pathlib import Path

from dyvte.tiny.scenes import save_images
from dyvte.tiny.sets.common import write_json, write_lines
from dyvte.tiny.sets.options import Choice, choices

TYPES = {
    "Scene Understanding": (1, "count_all"),
    "Instance Identity": (2, "digit_at"),
    "Instance Attributes": (3, "color_at"),
    "Instance Location": (4, "place"),
    "Instances Counting": (5, "count_color"),
    "Spatial Relation": (6, "neighbor"),
    "Instance Interaction": (7, "larger"),
    "Visual Reasoning": (8, "add"),
    "Text Understanding": (9, "read_line"),
    "Action Recognition": (10, "digit_at"),
    "Action Prediction": (11, "count_side"),
    "Procedure Understanding": (12, "digit_of"),
}
"""Name of a type -> its id, and the kind of question asked."""

_TURNS = (*TYPES, *4 * ["Instance Identity"])  # which is the form that the model was trained on
_FORMS = [(kind, 4, type_id, name) for name in _TURNS for type_id, kind in [TYPES[name]]]
_FIRST_VIDEO_TYPE, _FIRST_TYPE_WITH_SEGMENT = 10, 11


def write_seed(folder: Path, questions: int) -> None:
    """``questions`` questions with four options, the images' before the videos'."""
    drawn = sorted(choices("seed", _FORMS, questions), key=lambda one: one[0][2] >= _FIRST_VIDEO_TYPE)
    records, rows, images, frames = [], [], {}, {}
    for number, ((_, _, type_id, name), choice, scene, _) in enumerate(drawn):
        records.append(_record(choice, type_id, number))
        rows.append(_row(records[-1], name, choice))
        (frames if type_id >= _FIRST_VIDEO_TYPE else images)[folder / rows[-1]["image"]] = scene
    (folder / "SEED-Bench-video-image").mkdir(parents=True, exist_ok=True)  # few questions are all on images
    save_images(images)
    save_images(frames, "PNG")
    types = {name: type_id for name, (type_id, _) in TYPES.items()}
    write_json(folder / "SEED-Bench.json", {"question_type": types, "questions": records})
    write_lines(folder / "llava-seed-bench.jsonl", rows)


def _record(choice: Choice, type_id: int, number: int) -> dict:
    video = type_id >= _FIRST_VIDEO_TYPE
    record = {
        "answer": choice.letter,
        **{f"choice_{letter.lower()}": option for letter, option in choice.by_letter().items()},
        "data_id": f"{number}.mp4" if video else f"{number:07d}_{number + 1:010d}",
        "data_type": "video" if video else "image",
        "question": choice.text,
        "question_id": f"v{number}" if video else str(100_000 + number),
        "question_type_id": type_id,
    }
    return {**record, "segment": [0, 1]} if type_id >= _FIRST_TYPE_WITH_SEGMENT else record


def _row(record: dict, name: str, choice: Choice) -> dict:
    """LLaVA's row: ids of image questions are numbers, those of video questions strings."""
    video = record["data_type"] == "video"
    frame = f"SEED-Bench-video-image/{record['question_type_id']}_{record['question_id']}.png"
    return {
        "image": frame if video else f"SEED-Bench-image/{record['data_id']}",
        "text": choice.prompt(),
        "category": name,
        "question_id": record["question_id"] if video else int(record["question_id"]),
    }
