"""Held-out questions by the evaluation writers: three benchmarks' layouts, and one plain file of all kinds.

DIR/gqa, DIR/pope, DIR/textvqa    files as LLaVA's evaluation has them (look-ups and computations; presence;
                                  reading a row or column)
DIR/heldout/questions.jsonl       every kind equally often, with "answer" and "kind"; images in
DIR/heldout/images

python -m dyvte.tiny.sets --out DIR
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from dyvte.tiny.data import save_images
from dyvte.tiny.questions import (
    KINDS,
    SHORT_ANSWER,
    Question,
    absent_mixtures,
    ask,
    ask_any,
    presence_question,
)
from dyvte.tiny.scenes import Scene, draw

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

_POPE_FIRST_IDS = {"adversarial": 1, "random": 10_000_001, "popular": 20_000_001}
_POPE_PER_SCENE = 6
_SEEDS = {"gqa": 1, "pope": 2, "textvqa": 3, "heldout": 4}


def write_gqa(folder: str | Path, questions: int) -> None:
    """``questions`` questions, four to a scene, in GQA's testdev_balanced layout."""
    folder, images = _prepare(folder, "data/images")
    rows, records, scenes, names = [], {}, [], []
    for scene, rng in _scenes("gqa"):
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
    _write_lines(folder / "llava_gqa_testdev_balanced.jsonl", rows)
    (folder / "data" / "testdev_balanced_questions.json").write_text(json.dumps(records))


def write_pope(folder: str | Path, questions: int) -> None:
    """``questions`` questions, in whole scenes, in POPE's layout: three splits, six a scene in each.

    Half of them ask for things that are there.
    Things that are not there are drawn at random, or are the commonest ones of the set (popular), or have a
    colour and a digit that are both there, apart (adversarial).
    """
    folder, images = _prepare(folder, "val2014")
    scenes = -(-questions // (_POPE_PER_SCENE * len(_POPE_FIRST_IDS)))
    labels_folder = folder / "coco"
    labels_folder.mkdir(exist_ok=True)
    drawn = [pair for pair, _ in zip(_pope_scenes(), range(scenes), strict=False)]
    names = [f"COCO_val2014_{number:012d}.jpg" for number in range(scenes)]
    save_images([scene for scene, _ in drawn], [images / name for name in names])
    common = [name for name, _ in Counter(t.name for scene, _ in drawn for t in scene.things).most_common()]
    rows = []
    for split, first_id in _POPE_FIRST_IDS.items():
        labels = []
        for (scene, rng), image in zip(drawn, names, strict=True):
            for text, label in _pope_questions(scene, split, common, rng):
                labels.append({"question_id": len(labels) + 1, "image": image, "text": text, "label": label})
        _write_lines(labels_folder / f"coco_pope_{split}.json", labels)
        for row in labels:
            rows.append(
                {
                    "question_id": first_id + row["question_id"] - 1,
                    "image": row["image"],
                    "text": f"{row['text']}\n{SHORT_ANSWER}",
                    "category": split,
                }
            )
    _write_lines(folder / "llava_pope_test.jsonl", rows)


def write_textvqa(folder: str | Path, questions: int) -> None:
    """A row or column to read in each of ``questions`` scenes, in TextVQA's layout, without OCR tokens."""
    folder, images = _prepare(folder, "train_images")
    rows, annotations, scenes, paths = [], [], [], []
    for scene, rng in _scenes("textvqa"):
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
    _write_lines(folder / "llava_textvqa_val_v051_ocr.jsonl", rows)
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": annotations}))


def write_heldout(folder: str | Path, per_kind: int) -> None:
    """``per_kind`` questions of every kind."""
    folder, images = _prepare(folder, "images")
    rows, left, scenes, paths = [], Counter(dict.fromkeys(KINDS, per_kind)), [], []
    for scene, rng in _scenes("heldout"):
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
    _write_lines(folder / "questions.jsonl", rows)


def _scenes(name: str) -> Iterator[tuple[Scene, np.random.Generator]]:
    """Endless scenes of the evaluation writers for a set, each with randomness of its own."""
    for index in count():
        yield draw("eval", _SEEDS[name], index), np.random.default_rng((_SEEDS[name], index, 2))


def _pope_scenes() -> Iterator[tuple[Scene, np.random.Generator]]:
    """Scenes with things enough for every split."""
    for scene, rng in _scenes("pope"):
        half = _POPE_PER_SCENE // 2
        if len({thing.name for thing in scene.things}) >= half and len(absent_mixtures(scene)) >= half:
            yield scene, rng


def _pope_questions(
    scene: Scene, split: str, common: Sequence[str], rng: np.random.Generator
) -> Iterator[tuple[str, str]]:
    """(question, label) of one scene, yes and no in turn."""
    half = _POPE_PER_SCENE // 2
    present = sorted({thing.name for thing in scene.things})
    absent = [name for name in common if name not in present]
    if split == "adversarial":
        absent = absent_mixtures(scene)
    if split != "popular":
        absent = [absent[index] for index in rng.permutation(len(absent))]
    for index, missing in zip(rng.permutation(len(present))[:half], absent, strict=False):
        yield presence_question(present[index]), "yes"
        yield presence_question(missing), "no"


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


def _prepare(folder: str | Path, images: str) -> tuple[Path, Path]:
    """The folder and its image folder, made where missing."""
    folder = Path(folder)
    (folder / images).mkdir(parents=True, exist_ok=True)
    return folder, folder / images


def _write_lines(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--questions", type=int, default=400, help="of each benchmark")
    parser.add_argument("--heldout", type=int, default=100, help="questions of each kind")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    write_gqa(out / "gqa", arguments.questions)
    write_pope(out / "pope", arguments.questions)
    write_textvqa(out / "textvqa", arguments.questions)
    write_heldout(out / "heldout", arguments.heldout)
    print(f"gqa, pope, textvqa and heldout written to {out}")


if __name__ == "__main__":
    main()
