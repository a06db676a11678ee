"""All kinds of questions equally often, in one plain file with "answer" and "kind".

Registered in ``dyvte/tiny/sets/__init__.py``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dyvte.tiny.questions import KINDS, ask
from dyvte.tiny.scenes import Scene, save_images
from dyvte.tiny.sets.common import scenes_of, write_lines


def write_held_out(folder: Path, per_kind: int) -> None:
    """``per_kind`` questions of every kind."""
    rows, left = [], Counter(dict.fromkeys(KINDS, per_kind))
    scenes: dict[Path, Scene] = {}
    for scene, rng in scenes_of("heldout"):
        if not +left:
            break
        name = f"{len(scenes):06d}.jpg"
        scenes[folder / "images" / name] = scene
        for kind in +left:
            if question := ask(scene, kind, rng):
                left[kind] -= 1
                about = {"question_id": len(rows), "image": name, "text": question.prompt()}
                rows.append({**about, "answer": question.answer, "kind": kind})
    save_images(scenes)
    write_lines(folder / "questions.jsonl", rows)
