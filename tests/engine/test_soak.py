"""Thousands of questions in one process: memory stays flat, and so does what is kept between questions."""

from __future__ import annotations

import argparse
import gc
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from dyvte import ExitGates
from dyvte.decoding.attach import TRACES_KEPT
from dyvte.decoding.cache.ragged import RaggedCache
from dyvte.engine import run
from dyvte.engine.answer import Answerer
from dyvte.engine.questions import JSON_LINES
from tests.fixtures.checkpoints import CORPUS

STATUS = Path("/proc/self/status")
WORDS = CORPUS[1].split()


def resident_megabytes() -> float:
    """What the process holds now."""
    gc.collect()
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1e3


@pytest.mark.skipif(not STATUS.is_file(), reason="reads Linux's figures of memory")
@pytest.mark.parametrize(
    "count", [200, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]
)
def test_memory_stays_flat(checkpoint, tmp_path, monkeypatch, capsys, count):
    chance = random.Random(0)
    for index in range(8):
        size = (chance.randint(20, 300), chance.randint(20, 300))
        Image.new("RGB", size, (30 * index, 99, 99)).save(tmp_path / f"{index}.png")
    with (tmp_path / "q.jsonl").open("w") as file:
        for number in range(count):
            text = " ".join(chance.choices(WORDS, k=chance.randint(1, 60)))
            images = [f"{chance.randrange(8)}.png" for _ in range(chance.randint(0, 5))]
            file.write(json.dumps({"question_id": number, "text": text, "image": images}) + "\n")
    ExitGates(3, 32, width=8).save_pretrained(tmp_path / "gates")
    held, caches, handles = [], [], []
    answer = Answerer.complete

    def measured(answerer: Answerer, *args, **kwargs):
        answers = answer(answerer, *args, **kwargs)
        handles.append(answerer.handle)
        if len(handles) % max(1, count // 40) == 0:
            held.append(resident_megabytes())
            caches.append(sum(type(found) is RaggedCache for found in gc.get_objects()))
        return answers

    monkeypatch.setattr(Answerer, "complete", measured)
    flags = (
        f"--model-path {checkpoint} --question-file {tmp_path}/q.jsonl --image-folder {tmp_path} --device cpu"
    )
    flags += f" --answers-file {tmp_path}/a.jsonl --conv-mode vicuna_v1 --temperature 0 --max_new_tokens 6"
    flags += f" --gates {tmp_path}/gates --batch-size 4"
    args: argparse.Namespace = run.question_parser(JSON_LINES).parse_args(flags.split())
    run.answer_items(args, JSON_LINES.read(args))
    assert sum(1 for _ in (tmp_path / "a.jsonl").open()) == count
    settled = held[len(held) // 4 :]
    with capsys.disabled():
        print(f"\n{count} questions: {settled[0]:.0f} MB after a quarter, {settled[-1]:.0f} MB at the end")
    assert max(settled) - settled[0] < 60, held
    assert max(caches) <= 2, "caches of earlier batches are still held"
    assert len(handles[-1].traces) <= TRACES_KEPT
