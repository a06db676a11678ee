"""VQAv2's layout: colors, counts, digits by color, presence. The validation split has answers, test has none.

Registered in ``dyvte/tiny/sets/__init__.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dyvte.tiny.questions import Question
from dyvte.tiny.scenes import save_images
from dyvte.tiny.sets.common import NUMBER_WORDS, asked_together, generator_of, row, write_json, write_lines

KINDS = ("color_of", "count_color", "count_all", "digit_of", "presence", "higher")
_TEST_QUESTIONS = 24
_ANNOTATORS = 10
_QUESTION_TYPES = ("what color is the", "how many", "is there a", "which", "what")
_INFO = {
    "description": "Questions about scenes of handwritten digits, in the format of VQA v2.0.",
    "url": "",
    "version": "1.0",
    "year": 2025,
    "contributor": "Tiny-LLaVA",
    "date_created": "2025-01-01 00:00:00",
}
_LICENSE = {"url": "https://www.apache.org/licenses/LICENSE-2.0", "name": "Apache License 2.0"}

Record = tuple[Question, int, int]
"""A question, its image's id and its own."""


def write_vqav2(folder: Path, questions: int) -> None:
    """``questions`` of the validation split with ten answers each, and a few of test2015, half in test-dev2015."""
    records, rows = _write_split(folder, "vqav2", "val2014", questions)
    rng = generator_of("vqav2")
    header = {
        "info": _INFO,
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": _LICENSE,
        "data_subtype": "val2014",
    }
    annotations = [_annotation(*record, rng) for record in records]
    asked = [{"image_id": image, "question": q.text, "question_id": name} for q, image, name in records]
    write_json(folder / "v2_mscoco_val2014_annotations.json", {**header, "annotations": annotations})
    write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {**header, "questions": asked})
    write_lines(folder / "llava_vqav2_mscoco_val2014.jsonl", rows)
    _, rows = _write_split(folder, "vqav2_test", "test2015", _TEST_QUESTIONS)
    write_lines(folder / "llava_vqav2_mscoco_test2015.jsonl", rows)
    write_lines(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", rows[::2])


def _write_split(folder: Path, name: str, split: str, questions: int) -> tuple[list[Record], list[dict]]:
    """Images of a split; returns its records and its question rows."""
    records, rows, scenes = [], [], {}
    for number, (scene, asked) in enumerate(asked_together(name, KINDS, questions), start=1):
        image = f"COCO_{split}_{number:012d}.jpg"
        scenes[folder / split / image] = scene
        for question_id, question in enumerate(asked, start=1000 * number):
            records.append((question, number, question_id))
            rows.append(row(question_id, image, question.prompt()))
    save_images(scenes)
    return records, rows


def _annotation(question: Question, image: int, name: int, rng: np.random.Generator) -> dict:
    """Ten people's answers: all mean the same, but up to four of them may write a number as a word."""
    answer = question.answer
    number = answer.isdecimal()
    wordy = rng.permutation(_ANNOTATORS)[: int(rng.integers(5))].tolist() if number else []
    return {
        "question_type": next(kind for kind in _QUESTION_TYPES if question.text.lower().startswith(kind)),
        "multiple_choice_answer": answer,
        "answers": [
            {
                "answer": NUMBER_WORDS[int(answer)] if person in wordy else answer,
                "answer_confidence": "yes" if rng.random() < 0.9 else "maybe",
                "answer_id": person + 1,
            }
            for person in range(_ANNOTATORS)
        ],
        "image_id": image,
        "answer_type": "yes/no" if answer in ("yes", "no") else "number" if number else "other",
        "question_id": name,
    }
