"""Cost of the gates' labels, in multiples of one frozen forward over the same prompts and answers.

All layers in one pass (the default of training) beside the paper's random-layer way, which labels one layer per pass:
its middle layer stands for the mean, because a copy that starts at layer l costs the layers above l.

Called by :mod:`dyvte.bench`.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dyvte.bench.settings import Measurements, Result, Settings
from dyvte.bench.shapes import MaskedLlama, Prompts
from dyvte.gates.supervision import IGNORE_INDEX, supervise
from dyvte.timing import LayerClock, interleaved, seconds_of

FROZEN, ALL, RANDOM = "frozen forward", "labels of all layers", "label of one random layer"


def run(settings: Settings, model: MaskedLlama, batch: int, out: Measurements) -> None:
    """Measure one batch size."""
    prompts, labels = with_answers(settings, model, batch)
    layers = model.config.num_hidden_layers
    work = {
        FROZEN: lambda: frozen(model, prompts, settings.answer_tokens),
        ALL: lambda: supervise(model, prompts.inputs_embeds, labels, prompts.visual_mask),
        RANDOM: lambda: supervise(
            model, prompts.inputs_embeds, labels, prompts.visual_mask, layers=[(layers - 1) // 2]
        ),
    }
    tasks: dict[str, Callable[[], Any]] = {
        name: lambda call=call: _seconds(model, call) for name, call in work.items()
    }
    measured = interleaved(tasks, settings.rounds, settings.warmup, settings.progress)
    base = [total for total, _ in measured[FROZEN]]
    for name, made in ((FROZEN, 0), (ALL, layers), (RANDOM, 1)):
        seconds = [total for total, _ in measured[name]]
        result = Result(batch, name, settings.attn, None, seconds)
        forwards = median([own / one for own, one in zip(seconds, base, strict=True)])
        result.numbers["forwards"] = forwards
        if made:
            result.numbers["forwards_per_label"] = forwards / made
        out.results.append(result)
        per_layer = zip(*(times for _, times in measured[name]), strict=True)
        out.layers[f"batch {batch}, {name}"] = [median(times) for times in per_layer]


def _seconds(model, work: Callable[[], Any]) -> tuple[float, list[float]]:
    clock = LayerClock(model.model, model.device)
    with clock.running():
        total = seconds_of(work, model.device)
    return total, clock.seconds()


def with_answers(settings: Settings, model, batch: int) -> tuple[Prompts, Tensor]:
    """Prompts that end in ``--answer-tokens`` answer tokens, and the labels (B, S) of these."""
    prompts = settings.make_prompts(model, batch)
    generator = torch.Generator().manual_seed(1)
    answers = torch.randint(3, model.config.vocab_size, (batch, settings.answer_tokens), generator=generator)
    answers = answers.to(model.device)
    embeds = torch.cat([prompts.inputs_embeds, model.get_input_embeddings()(answers)], dim=1)
    columns = prompts.visual_mask.shape[1]
    visual = torch.nn.functional.pad(prompts.visual_mask, (0, settings.answer_tokens))
    labels = torch.full(visual.shape, IGNORE_INDEX, device=model.device)
    labels[:, columns:] = answers
    return Prompts(embeds, visual), labels


def frozen(model, prompts: Prompts, answer_tokens: int) -> Tensor:
    """Transformers' own forward, with logits where answers are predicted."""
    out = model(inputs_embeds=prompts.inputs_embeds, use_cache=False, logits_to_keep=answer_tokens + 1)
    return out.logits
