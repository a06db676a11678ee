"""Tiny-LLaVA on a GPU beside a CPU, and the bench's stand-ins of CUDA graphs beside the real ones."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from dyvte.bench import parity, variants
from dyvte.bench.decode import Session
from dyvte.bench.generate import generate
from dyvte.bench.prefill import prober
from dyvte.bench.shapes import random_model, random_prompts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
QUESTIONS = Path(__file__).parent / "questions"
TINY = Path(__file__).parents[2] / "playground/tiny"
FEWEST = 0.97
"""Share of answers and exits that bfloat16 keeps: 200 and 199 of 200 on an H100 (docs/benchmarks/h100-before)."""


def flags(**more) -> argparse.Namespace:
    given = {
        "model-path": TINY / "model",
        "gates": TINY / "gates",
        "question-file": QUESTIONS / "questions.jsonl",
        "image-folder": QUESTIONS / "images",
    }
    words = [str(word) for name, value in (given | more).items() for word in (f"--{name}", value)]
    return parity.build_parser().parse_args(words)


@pytest.fixture(scope="module")
def expected():
    return parity.answer_all(flags(), "cpu", "float32", graphs=False)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_and_exits_are_those_of_a_cpu(expected, dtype, graphs, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = parity.answer_all(flags(), "cuda", dtype, graphs)
    agreement = parity.compare(expected, found, dtype, graphs)
    assert agreement.questions == 200 and not agreement.broken, agreement
    assert min(agreement.answers, agreement.exits) >= FEWEST * agreement.questions, agreement


@torch.no_grad()
def test_contenders_of_the_bench_do_the_same_work():
    """transformers under one graph and with a static cache give its own logits and tokens; layers as graphs run."""
    model = random_model("tiny", 4, torch.float32, "cuda")
    prompts = random_prompts(model, 2, 9, 12)
    names = ["baseline", "one-graph"]
    baseline, graph = variants.make_variants(model, 2, [1], "sdpa", names)
    with baseline.ready(model):
        own = baseline.prefill(model, prompts).logits
        tokens = generate(model, prompts, 6)
    with graph.ready(model):
        for _ in range(2):
            torch.testing.assert_close(graph.prefill(model, prompts).logits, own, rtol=1e-4, atol=1e-4)
    (static,) = variants.make_variants(model, 2, [1], "sdpa", ["static"], command="generate")
    with static.ready(model):
        assert torch.equal(generate(model, prompts, 6, static.generation), tokens)
    for probe in (prober(baseline, model, prompts), Session(baseline, model, prompts).prober(2)):
        probe()
        times = probe()
        assert len(times.layers) == 4 and min(times.layers) > 0 and sum(times.layers) <= times.total


def test_memory_of_a_row_is_seen():
    model = random_model("tiny", 4, torch.bfloat16, "cuda")
    prompts = random_prompts(model, 2, 9, 12)
    for variant in variants.make_variants(model, 2, [1], "sdpa", ["baseline", "graphs"], gate_width=8):
        with torch.no_grad():
            numbers = variant.memory(model, lambda variant=variant: variant.prefill(model, prompts))
        assert numbers["peak_mib"] > 0 and numbers["reserved_mib"] is not None
