"""Seconds of a prefill: decoder, and the language head for the last token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dyvte.bench.contenders import Contender
from dyvte.bench.ideal import Probe, decoder_flops, ideal_seconds
from dyvte.bench.rates import Load, Rates, count_operations, layer_load, rate_tasks, rates_of
from dyvte.bench.settings import Outcome, Settings, fill_flops_ideal, of_batch
from dyvte.bench.shapes import Prompts
from dyvte.bench.timing import LayerClock, Spread, interleaved, seconds_of

WITH, WITHOUT = "layers with image", "layers without image"


def run(settings: Settings) -> Outcome:
    """Measure all batch sizes."""
    model, outcome = settings.make_model(), Outcome()
    with torch.no_grad():
        for batch in settings.batch:
            _run_batch(settings, model, batch, outcome)
    return outcome


def _run_batch(settings: Settings, model, batch: int, outcome: Outcome) -> None:
    prompts = settings.make_prompts(model, batch)
    contenders = settings.make_contenders(model, batch)
    flops: dict[str, float] = {}
    tasks: dict[str, Callable[[], Any]] = {
        contender.name: lambda contender=contender: _timed(contender, model, prompts, flops)
        for contender in contenders
    }
    baseline = Contender("probe", settings.attn, None, [None] * batch)
    tasks[WITH] = lambda: probe(baseline, model, prompts)
    tasks[WITHOUT] = lambda: probe(baseline, model, prompts.text_only())
    columns = batch * prompts.inputs_embeds.shape[1]
    tasks |= rate_tasks(model.config, columns, model.dtype, model.device)
    measured = interleaved(tasks, settings.rounds, settings.warmup, settings.progress)

    probes = list(zip(measured[WITH], measured[WITHOUT], strict=True))
    results = []
    for contender in contenders:
        ideal = contender.exits and [ideal_seconds(*pair, contender.exits) for pair in probes]
        results.append(of_batch(contender, batch, measured[contender.name], ideal=ideal or None))
    fill_flops_ideal(results, flops)
    outcome.results += results
    for name in (WITH, WITHOUT):
        outcome.layers[f"batch {batch}, {name}"] = median_layers(measured[name])
    rates = rates_of(model.config, columns, measured)
    outcome.regimes += _regimes(model, prompts, baseline, rates)


def _timed(contender: Contender, model, prompts: Prompts, flops: dict[str, float]) -> float:
    """Seconds of one prefill; its FLOPs are noted beside, outside the clock."""
    config = model.config
    with contender.ready(model) as handle:
        seconds = seconds_of(lambda: contender.prefill(model, prompts), model.device)
    if handle is not None:
        trace = handle.traces[-1]
        own = decoder_flops(config, trace.tokens_per_layer.tolist()) + int(trace.gate_flops.sum())
    else:
        own = decoder_flops(config, untraced_tokens(contender, prompts, config.num_hidden_layers))
    flops[contender.name] = own
    return seconds


def untraced_tokens(contender: Contender, prompts: Prompts, num_layers: int) -> list[list[int]]:
    """[layer][sample] tokens of a contender without a trace, from its exits."""
    whole, short = prompts.visual_mask.shape[1], int((~prompts.visual_mask[0]).sum())
    exits = contender.exits or [None] * prompts.batch
    return [[whole if at is None or layer <= at else short for at in exits] for layer in range(num_layers)]


def probe(contender: Contender, model, prompts: Prompts) -> Probe:
    """One forward with a clock at every layer."""
    clock = LayerClock(model.model, model.device)
    with contender.ready(model), clock.running():
        total = seconds_of(lambda: contender.prefill(model, prompts), model.device)
    return Probe(clock.seconds(), total)


def median_layers(probes: list[Probe]) -> list[float]:
    """Median seconds of each layer."""
    return [Spread.of(times).median for times in zip(*(one.layers for one in probes), strict=True)]


def _regimes(model, prompts: Prompts, baseline: Contender, rates: Rates) -> list[dict[str, Any]]:
    """What limits a layer before and after an exit."""
    out = []
    for name, those in (("with image", prompts), ("after the exit", prompts.text_only())):
        tokens = those.visual_mask.shape[1]
        launches = launches_per_layer(model, lambda those=those: baseline.prefill(model, those), baseline)
        load = layer_load(model.config, model.dtype, tokens, those.batch, tokens, launches)
        out.append(regime_line(f"batch {those.batch}, {name}", load, rates))
    return out


def launches_per_layer(model, work: Callable[[], object], contender: Contender) -> int:
    """Operations that one layer launches."""
    with contender.ready(model):
        return round(count_operations(work) / model.config.num_hidden_layers)


def regime_line(name: str, load: Load, rates: Rates) -> dict[str, Any]:
    """A regime with the figures it follows from, for tables and JSON."""
    return {
        "what": name,
        "regime": load.regime(rates),
        "bounds": load.bounds(rates),
        "tflops_per_second": rates.flops / 1e12,
        "gigabytes_per_second": rates.bytes / 1e9,
        "microseconds_per_launch": 1e6 * rates.launch,
        "launches": load.launches,
    }
