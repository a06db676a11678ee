"""Seconds of a whole generation: prefill and ``--answer-tokens`` greedy tokens through ``model.generate``.

Besides the time, the share of it that is spent outside the decoder layers: what ``generate``, the loop around the
layers, policies and the language head take together.

Called by :mod:`dyvte.bench` and :mod:`dyvte.bench.decode`.
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
from dyvte.decoding.attach import is_attached
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
        if _launched(variant):
            outside = [1 - inside / total for total, inside in measured[variant.name]]
            result.numbers["outside_layers"] = median(outside)
        result.numbers |= variant.memory(
            model, lambda variant=variant: generate(model, prompts, count, variant.generation)
        )
        out.results.append(result)


def generate(model, prompts: Prompts, count: int, options: dict[str, Any] | None = None) -> Tensor:
    """``count`` greedy tokens (B, count), through transformers' ``generate``; to be called on a readied model."""
    inputs = prompts.inputs()
    if not is_attached(model):
        del inputs["visual_mask"]  # an argument that compiled decoding would have to look at
    return model.generate(
        **inputs,
        attention_mask=torch.ones_like(prompts.visual_mask, dtype=torch.long),
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        **(options or {}),
    )


def _launched(variant: Variant) -> bool:
    """Whether layers are launched one by one, so that a clock sees them."""
    return variant.graphs is None and not variant.generation


def _seconds(variant: Variant, model, prompts: Prompts, count: int) -> tuple[float, float]:
    """Seconds of one generation, and those of them inside decoder layers (0 where the layers cannot be seen)."""

    def work() -> Tensor:
        return generate(model, prompts, count, variant.generation)

    clock = LayerClock(model.model, model.device)
    with variant.ready(model):
        if not _launched(variant):
            return seconds_of(work, model.device), 0.0
        with clock.running():
            total = seconds_of(work, model.device)
    return total, sum(clock.seconds())
