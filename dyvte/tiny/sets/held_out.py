"""All kinds of questions equally often, in one plain file with "answer" and "kind"."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dyvte.tiny.data import save_images
from dyvte.tiny.questions import KINDS, ask
from dyvte.tiny.sets.common import prepare, scenes_of, write_lines


def write_held_out(folder: str | Path, per_kind: int) -> None:
    """``per_kind`` questions of every kind."""
    folder, images = prepare(folder, "images")
    rows, left, scenes, paths = [], Counter(dict.fromkeys(KINDS, per_kind)), [], []
    for scene, rng in scenes_of("heldout"):
        if not +left:
            break
        name = f"{len(scenes):06d}.jpg"
        scenes.append(scene)
        paths.append(images / name)
        for kind in +left:
            question = ask(scene, kind, rng)
            if question:
                left[kind] -= 1
                rows.append(
                    {
                        "question_id": len(rows),
                        "image": name,
                        "text": question.prompt(),
                        "answer": question.answer,
                        "kind": kind,
                    }
                )
    save_images(scenes, paths)
    write_lines(folder / "questions.jsonl", rows)
