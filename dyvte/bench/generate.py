"""Seconds of a whole generation: prefill and ``--answer-tokens`` greedy tokens through ``model.generate``.

Besides the time, the share of it that is spent outside the decoder layers: what ``generate``, the loop around the
layers, policies and the language head take together.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dyvte.bench.settings import Measurements, Settings, result_of
from dyvte.bench.shapes import MaskedLlama, Prompts
from dyvte.bench.variants import Variant
from dyvte.timing import LayerClock, interleaved, seconds_of


def run(settings: Settings, model: MaskedLlama, batch: int, out: Measurements) -> None:
    """Measure one batch size."""
    prompts, count = settings.make_prompts(model, batch), settings.answer_tokens
    variants = settings.make_variants(model, batch)
    tasks: dict[str, Callable[[], Any]] = {
        variant.name: lambda variant=variant: _seconds(variant, model, prompts, count) for variant in variants
    }
    measured = interleaved(tasks, settings.rounds, settings.warmup, settings.progress)
    for variant in variants:
        seconds = [total for total, _ in measured[variant.name]]
        result = result_of(variant, batch, seconds)
        result.numbers["tokens_per_second"] = batch * count / median(seconds)
        if variant.graphs is None:
            outside = [1 - inside / total for total, inside in measured[variant.name]]
            result.numbers["outside_layers"] = median(outside)
        out.results.append(result)


def generate(model, prompts: Prompts, count: int) -> Tensor:
    """``count`` greedy tokens (B, count), through transformers' ``generate``; to be called on a readied model."""
    return model.generate(
        inputs_embeds=prompts.inputs_embeds,
        attention_mask=torch.ones_like(prompts.visual_mask, dtype=torch.long),
        visual_mask=prompts.visual_mask,
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
    )


def _seconds(variant: Variant, model, prompts: Prompts, count: int) -> tuple[float, float]:
    """Seconds of one generation, and those of them inside decoder layers (0 where graphs hide the layers)."""
    if variant.graphs is not None:
        with variant.ready(model):
            return seconds_of(lambda: generate(model, prompts, count), model.device), 0.0
    clock = LayerClock(model.model, model.device)
    with variant.ready(model), clock.running():
        total = seconds_of(lambda: generate(model, prompts, count), model.device)
    return total, sum(clock.seconds())
