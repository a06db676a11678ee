"""Seconds of a whole generation: prefill and ``--answer-tokens`` greedy tokens through ``model.generate``.

Besides the time, the share of it that is spent outside the decoder layers: what ``generate``, the loop around the
layers, policies and the language head take together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from dyvte.bench.contenders import Contender
from dyvte.bench.settings import Outcome, Result, Settings, of_batch
from dyvte.bench.shapes import Prompts
from dyvte.bench.timing import LayerClock, Spread, interleaved, seconds_of


def run(settings: Settings) -> Outcome:
    """Measure all batch sizes."""
    model, outcome = settings.make_model(), Outcome()
    with torch.no_grad():
        for batch in settings.batch:
            outcome.results += _run_batch(settings, model, batch)
    return outcome


def _run_batch(settings: Settings, model, batch: int) -> list[Result]:
    prompts, count = settings.make_prompts(model, batch), settings.answer_tokens
    contenders = settings.make_contenders(model, batch)
    tasks: dict[str, Callable[[], Any]] = {
        contender.name: lambda contender=contender: _seconds(contender, model, prompts, count)
        for contender in contenders
    }
    measured = interleaved(tasks, settings.rounds, settings.warmup, settings.progress)
    results = []
    for contender in contenders:
        seconds = [total for total, _ in measured[contender.name]]
        result = of_batch(contender, batch, seconds)
        result.numbers["tokens_per_second"] = batch * count / Spread.of(seconds).median
        if contender.graphs is None:
            outside = [1 - inside / total for total, inside in measured[contender.name]]
            result.numbers["outside_layers"] = Spread.of(outside).median
        results.append(result)
    return results


def generate(model, prompts: Prompts, count: int) -> Tensor:
    """``count`` greedy tokens (B, count), through transformers' ``generate``; to be called on a readied model."""
    # past LLaVA's own generate, which would splice images first
    return LlamaForCausalLM.generate(  # type: ignore[return-value]
        model,
        inputs_embeds=prompts.inputs_embeds,
        attention_mask=torch.ones_like(prompts.visual_mask, dtype=torch.long),
        visual_mask=prompts.visual_mask,
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
    )


def _seconds(contender: Contender, model, prompts: Prompts, count: int) -> tuple[float, float]:
    """Seconds of one generation, and those of them inside decoder layers (0 where graphs hide the layers)."""
    if contender.graphs is not None:
        with contender.ready(model):
            return seconds_of(lambda: generate(model, prompts, count), model.device), 0.0
    clock = LayerClock(model.model, model.device)
    with contender.ready(model), clock.running():
        total = seconds_of(lambda: generate(model, prompts, count), model.device)
    return total, sum(clock.seconds())
