"""Seconds of a decoding step after a prefill: all variants hold their caches at once and take turns.

Each turn decodes ``--answer-tokens`` steps and then crops them from the cache, which is not timed, so that every turn
starts from the prompt. The probes behind the ideal decode from caches with and without the image's keys.

Called by :mod:`dyvte.bench` and :mod:`dyvte.bench.memory`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dyvte.bench.generate import generate
from dyvte.bench.graphed import GraphedLayers
from dyvte.bench.ideal import Probe, ideals
from dyvte.bench.prefill import WITH, WITHOUT, launches_per_layer, median_layers, probed, regime_line
from dyvte.bench.rates import layer_load, rate_tasks, rates_of
from dyvte.bench.settings import Measurements, Settings, result_of
from dyvte.bench.shapes import MaskedLlama, Prompts
from dyvte.bench.variants import Variant
from dyvte.timing import LayerClock, interleaved, seconds_of


class Session:
    """A prefilled cache that decodes some steps at a time, always from the prompt on."""

    def __init__(self, variant: Variant, model, prompts: Prompts):
        self.variant, self.model = variant, model
        with variant.ready(model) as handle:
            out: Any = variant.prefill(model, prompts)
        self.trace = None if handle is None else handle.traces[-1]
        self.cache: Any = out.past_key_values
        self.first: Tensor = out.logits[:, -1:].argmax(-1)

    def steps(self, count: int) -> Tensor:
        """Decode greedily, (B, count) tokens; to be called on the readied model."""
        token, tokens = self.first, []
        for _ in range(count):
            out = self.model(input_ids=token, past_key_values=self.cache, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            tokens.append(token)
        return torch.cat(tokens, dim=1)

    def forget(self, count: int) -> None:
        """Drop the last ``count`` tokens from the cache."""
        self.cache.crop(-count)

    def seconds(self, count: int) -> float:
        """Seconds per step, over ``count`` steps that are forgotten again."""
        with self.variant.ready(self.model):
            total = seconds_of(lambda: self.steps(count), self.model.device)
        self.forget(count)
        return total / count

    def prober(self, count: int) -> Callable[[], Probe]:
        """What times each layer of a step; on a GPU of graphs, as in :func:`dyvte.bench.prefill.prober`."""
        if self.model.device.type != "cuda":
            return lambda: self.probe(count)
        with self.variant.ready(self.model):
            return GraphedLayers(self.model, lambda: self.steps(1)).probe

    def probe(self, count: int) -> Probe:
        """As :meth:`seconds`, with a clock at every layer."""
        clock = LayerClock(self.model.model, self.model.device)
        with self.variant.ready(self.model), clock.running():
            total = seconds_of(lambda: self.steps(count), self.model.device)
        self.forget(count)
        return Probe([seconds / count for seconds in clock.seconds()], total / count)


def run(settings: Settings, model: MaskedLlama, batch: int, out: Measurements) -> None:
    """Measure one batch size."""
    prompts, count = settings.make_prompts(model, batch), settings.answer_tokens
    variants = settings.make_variants(model, batch)
    sessions = {variant.name: Session(variant, model, prompts) for variant in variants}
    baseline = probed(settings, batch)
    probes = {
        WITH: Session(baseline, model, prompts),
        WITHOUT: Session(baseline, model, prompts.text_only()),
    }
    tasks: dict[str, Callable[[], Any]] = {
        name: lambda session=session: session.seconds(count) for name, session in sessions.items()
    }
    tasks |= {name: session.prober(count) for name, session in probes.items()}
    tasks |= rate_tasks(model, batch)
    measured = interleaved(tasks, settings.rounds, settings.warmup, settings.progress)

    pairs = list(zip(measured[WITH], measured[WITHOUT], strict=True))
    for variant in variants:
        result = result_of(variant, batch, measured[variant.name], ideals(pairs, variant.exits))
        result.numbers["kv_mib"] = cache_bytes(sessions.pop(variant.name).cache) / 2**20
        result.numbers |= variant.memory(model, lambda: generate(model, prompts, count))
        out.results.append(result)
    for name in (WITH, WITHOUT):
        out.layers[f"batch {batch}, {name}"] = median_layers(measured[name])
    rates = rates_of(model.config, batch, measured)
    for name, those in ((WITH, prompts), (WITHOUT, prompts.text_only())):
        launches = launches_per_layer(model, lambda name=name: probes[name].steps(1), baseline)
        held = those.visual_mask.shape[1] + count // 2
        load = layer_load(model.config, model.dtype, 1, batch, held, launches)
        out.regimes.append(regime_line(f"batch {batch}, {name}", load, rates))


def cache_bytes(cache) -> int:
    """Bytes of the keys and values that a cache holds, either kind."""
    own = getattr(cache, "nbytes", None)
    if own is not None:
        return own
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
