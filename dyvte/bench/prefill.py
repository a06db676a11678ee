"""Seconds of a prefill: decoder, and the language head for the last token.

Called by :mod:`dyvte.bench` and :mod:`dyvte.bench.decode`.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from dyvte.bench.graphed import GraphedLayers
from dyvte.bench.ideal import Probe, decoder_flops, ideals
from dyvte.bench.rates import Load, Rates, count_operations, layer_load, rate_tasks, rates_of
from dyvte.bench.settings import Measurements, Settings, fill_flops_ideal, result_of
from dyvte.bench.shapes import MaskedLlama, Prompts
from dyvte.bench.variants import Variant
from dyvte.decoding.attention.plan import STOCK
from dyvte.timing import LayerClock, interleaved, seconds_of

WITH, WITHOUT = "layers with image", "layers without image"


def run(settings: Settings, model: MaskedLlama, batch: int, out: Measurements) -> None:
    """Measure one batch size."""
    prompts = settings.make_prompts(model, batch)
    variants = settings.make_variants(model, batch)
    flops: dict[str, float] = {}
    tasks: dict[str, Callable[[], Any]] = {
        variant.name: lambda variant=variant: _timed(variant, model, prompts, flops) for variant in variants
    }
    baseline = probed(settings, batch)
    tasks[WITH] = prober(baseline, model, prompts)
    tasks[WITHOUT] = prober(baseline, model, prompts.text_only())
    columns = batch * prompts.inputs_embeds.shape[1]
    tasks |= rate_tasks(model, columns)
    measured = interleaved(tasks, settings.rounds, settings.warmup, settings.progress)

    probes = list(zip(measured[WITH], measured[WITHOUT], strict=True))
    results = []
    for variant in variants:
        result = result_of(variant, batch, measured[variant.name], ideals(probes, variant.exits))
        result.numbers |= variant.memory(model, lambda variant=variant: variant.prefill(model, prompts))
        results.append(result)
    fill_flops_ideal(results, flops)
    out.results += results
    for name in (WITH, WITHOUT):
        out.layers[f"batch {batch}, {name}"] = median_layers(measured[name])
    rates = rates_of(model.config, columns, measured)
    out.regimes += _regimes(model, prompts, baseline, rates)


def _timed(variant: Variant, model, prompts: Prompts, flops: dict[str, float]) -> float:
    """Seconds of one prefill; its FLOPs are noted beside, outside the clock."""
    config = model.config
    with variant.ready(model) as handle:
        seconds = seconds_of(lambda: variant.prefill(model, prompts), model.device)
    if handle is not None:
        trace = handle.traces[-1]
        own = decoder_flops(config, trace.tokens_per_layer.tolist()) + int(trace.gate_flops.sum())
    else:
        own = decoder_flops(config, untraced_tokens(variant, prompts, config.num_hidden_layers))
    flops[variant.name] = own
    return seconds


def untraced_tokens(variant: Variant, prompts: Prompts, num_layers: int) -> list[list[int]]:
    """[layer][sample] tokens of a variant without a trace, from its exits."""
    whole, short = prompts.visual_mask.shape[1], int((~prompts.visual_mask[0]).sum())
    exits = variant.exits or [None] * prompts.batch
    return [[whole if at is None or layer <= at else short for at in exits] for layer in range(num_layers)]


def probed(settings: Settings, batch: int) -> Variant:
    """transformers' own forward, as probes run it."""
    return Variant("probe", STOCK.get(settings.attn, settings.attn), None, [None] * batch)


def prober(variant: Variant, model, prompts: Prompts) -> Callable[[], Probe]:
    """What times each layer of a prefill: of graphs on a GPU, where launching would hide what the layers take."""
    if model.device.type != "cuda":
        return lambda: probe(variant, model, prompts)
    with variant.ready(model):
        return GraphedLayers(model, lambda: variant.prefill(model, prompts)).probe


def probe(variant: Variant, model, prompts: Prompts) -> Probe:
    """One forward with a clock at every layer."""
    clock = LayerClock(model.model, model.device)
    with variant.ready(model), clock.running():
        total = seconds_of(lambda: variant.prefill(model, prompts), model.device)
    return Probe(clock.seconds(), total)


def median_layers(probes: list[Probe]) -> list[float]:
    """Median seconds of each layer."""
    return [median(times) for times in zip(*(one.layers for one in probes), strict=True)]


def _regimes(model, prompts: Prompts, baseline: Variant, rates: Rates) -> list[dict[str, Any]]:
    """What limits a layer before and after an exit."""
    out = []
    for name, those in (("with image", prompts), ("after the exit", prompts.text_only())):
        tokens = those.visual_mask.shape[1]
        launches = launches_per_layer(model, lambda those=those: baseline.prefill(model, those), baseline)
        load = layer_load(model.config, model.dtype, tokens, those.batch, tokens, launches)
        out.append(regime_line(f"batch {those.batch}, {name}", load, rates))
    return out


def launches_per_layer(model, work: Callable[[], object], variant: Variant) -> int:
    """Operations that one layer launches."""
    with variant.ready(model):
        return round(count_operations(work) / model.config.num_hidden_layers)


def regime_line(name: str, load: Load, rates: Rates) -> dict[str, Any]:
    """A regime with the figures it follows from, for tables and JSON."""
    return {
        "what": name,
        "regime": load.regime(rates),
        "bounds": load.bounds(rates),
        "tflops_per_second": rates.flops / 1e12,
        "gigabytes_per_second": rates.bytes / 1e9,
        "microseconds_per_launch": 1e6 * rates.launch / load.launches,
        "launches": load.launches,
    }
