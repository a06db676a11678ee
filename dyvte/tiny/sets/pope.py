"""POPE's layout: presence of a thing, in three splits of growing guile.

Registered in ``dyvte/tiny/sets/__init__.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from dyvte.tiny.questions import SHORT_ANSWER, absent_mixtures, presence_question
from dyvte.tiny.scenes import Scene, save_images
from dyvte.tiny.sets.common import row, scenes_of, write_lines

_FIRST_IDS = {"adversarial": 1, "random": 10_000_001, "popular": 20_000_001}
_PER_SCENE = 6


def write_pope(folder: Path, questions: int) -> None:
    """``questions`` questions, in whole scenes, in POPE's layout: three splits, six a scene in each.

    Half of them ask for things that are there.
    Things that are not there are drawn at random, or are the commonest ones of the set (popular), or have a
    color and a digit that are both there, apart (adversarial).
    """
    drawn = list(islice(_scenes(), -(-questions // (_PER_SCENE * len(_FIRST_IDS)))))
    names = [f"COCO_val2014_{number:012d}.jpg" for number in range(len(drawn))]
    save_images({folder / "val2014" / name: scene for name, (scene, _) in zip(names, drawn, strict=True)})
    common = [name for name, _ in Counter(t.name for scene, _ in drawn for t in scene.things).most_common()]
    rows = []
    for split, first_id in _FIRST_IDS.items():
        labels = []
        for (scene, rng), image in zip(drawn, names, strict=True):
            for text, label in _questions(scene, split, common, rng):
                labels.append({"question_id": len(labels) + 1, "image": image, "text": text, "label": label})
        write_lines(folder / f"coco/coco_pope_{split}.json", labels)
        rows += [
            row(first_id + place, label["image"], f"{label['text']}\n{SHORT_ANSWER}", split)
            for place, label in enumerate(labels)
        ]
    write_lines(folder / "llava_pope_test.jsonl", rows)


def _scenes() -> Iterator[tuple[Scene, np.random.Generator]]:
    """Scenes with things enough for every split."""
    for scene, rng in scenes_of("pope"):
        half = _PER_SCENE // 2
        if len({thing.name for thing in scene.things}) >= half and len(absent_mixtures(scene)) >= half:
            yield scene, rng


def _questions(
    scene: Scene, split: str, common: Sequence[str], rng: np.random.Generator
) -> Iterator[tuple[str, str]]:
    """(question, label) of one scene, yes and no in turn."""
    half = _PER_SCENE // 2
    present = sorted({thing.name for thing in scene.things})
    absent = [name for name in common if name not in present]
    if split == "adversarial":
        absent = absent_mixtures(scene)
    if split != "popular":
        absent = [absent[index] for index in rng.permutation(len(absent))]
    for index, missing in zip(rng.permutation(len(present))[:half], absent, strict=False):
        yield presence_question(present[index]), "yes"
        yield presence_question(missing), "no"
