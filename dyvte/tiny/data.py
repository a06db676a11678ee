"""Write training data in LLaVA's instruction format: Tiny-LLaVA's, or in fuller language Small-LLaVA's.

    DIR/images/<number>.jpg   scenes of the training writers
    DIR/pretrain.json         each scene read out as a caption (stage 1, template "plain")
    DIR/finetune.json         six to ten questions about each scene (stage 2)

With --spoken, captions are prose, and answers are also sentences, explanations and descriptions
(:mod:`dyvte.tiny.language`). Captions and questions share the images. Every scene depends on the seed and its number
alone, so the files do not depend on the number of processes.

    python -m dyvte.tiny.data --out DIR --scenes 40000 --processes 2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dyvte.cli import run
from dyvte.io import write_json
from dyvte.tiny import language
from dyvte.tiny.questions import KINDS, Question, ask
from dyvte.tiny.scenes import Scene, draw, save_images

KIND_WEIGHTS = {
    "choice": 3.0,
    "count_side": 2.5,
    "place": 2.0,
    "presence": 2.0,
    "neighbor": 2.0,
    "add": 1.5,
    "read_line": 1.5,
    "larger": 1.5,
    "color_at": 0.5,
    "color_of": 0.5,
    "arithmetic": 0.5,
    "count_all": 0.3,
}
"""How often a kind is asked, relative to the others: hard ones more, those with few questions less."""

_FEWEST_TURNS, _MOST_TURNS = 6, 10
_CHUNK = 100


def ask_many(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Six to ten different questions about a scene, kinds drawn by ``KIND_WEIGHTS``."""
    kinds = list(KINDS)
    weights = np.array([KIND_WEIGHTS.get(kind, 1.0) for kind in kinds])
    count = int(rng.integers(_FEWEST_TURNS, _MOST_TURNS + 1))
    found: dict[str, Question] = {}
    while len(found) < count:
        question = ask(scene, kinds[rng.choice(len(kinds), p=weights / weights.sum())], rng)
        if question:
            found.setdefault(question.text, question)
    return list(found.values())


def record_of(number: int, turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A scene's question and answer texts in LLaVA's format; the image comes with the first question."""
    spoken = [part for turn in turns for part in zip(("human", "gpt"), turn, strict=True)]
    conversations = [{"from": who, "value": text} for who, text in spoken]
    return {"id": f"{number:06d}", "image": f"{number:06d}.jpg", "conversations": conversations}


def write_chunk(
    numbers: range, out: Path, seed: int, spoken: bool = False
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Write the images of the scenes with these numbers; return their (caption, questions).

    As in LLaVA-1.5's mix, questions after the first go without the instruction to answer briefly; a choice always
    says so. ``spoken`` asks for fuller language instead.
    """
    scenes = {number: draw("train", seed, number) for number in numbers}
    save_images({out / "images" / f"{number:06d}.jpg": scene for number, scene in scenes.items()})
    records = []
    for number, scene in scenes.items():
        rng = np.random.default_rng((seed, number, 2))
        first, *others = ask_many(scene, rng)
        if spoken:
            caption, turns = language.describe(scene), language.spoken(scene, [first, *others], rng)
        else:
            caption, turns = scene.caption(), [(first.prompt(), first.answer)]
            turns += [(q.prompt() if q.kind == "choice" else q.text, q.answer) for q in others]
        turns[0] = (f"<image>\n{turns[0][0]}", turns[0][1])
        records.append((record_of(number, [("<image>", caption)]), record_of(number, turns)))
    return records


def write(out: Path, scenes: int, seed: int = 0, processes: int = 1, spoken: bool = False) -> None:
    """Write images and both instruction files of so many scenes, in fuller language if ``spoken``.

    Raises:
        ValueError: ``scenes`` or ``processes`` is below one.
    """
    if scenes < 1 or processes < 1:
        raise ValueError(f"scenes and processes must be at least 1, got {scenes} and {processes}")
    chunks = [range(start, min(start + _CHUNK, scenes)) for start in range(0, scenes, _CHUNK)]
    work, records = partial(write_chunk, out=out, seed=seed, spoken=spoken), []
    pool = get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) if processes > 1 else None
    with pool or nullcontext(), tqdm(total=scenes, desc="scenes", unit="scene") as bar:
        for chunk in pool.imap(work, chunks) if pool else map(work, chunks):
            records += chunk
            bar.update(len(chunk))
    for name, part in zip(("pretrain.json", "finetune.json"), zip(*records, strict=True), strict=True):
        write_json(out / name, part, indent=None)
    print(f"{scenes} scenes, captions and conversations written to {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=40000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--spoken", action="store_true", help="answers in fuller language as well")
    run(parser, lambda args: write(**vars(args)))


if __name__ == "__main__":
    main()
