"""Bytes of keys and values after prefill and after decoding: held, counted by the formula, allocated, and the peak.

*Held* are the tokens in the cache, *counted* is :mod:`dyvte.cost.kv` on the prefill's trace plus one token per sample
and layer for each step, and *allocated* are the buffers, which have room to grow once decoding began. The peak is
that of :mod:`dyvte.bench.peak` over both.
"""

from __future__ import annotations

from dyvte.bench.decode import Session, cache_bytes
from dyvte.bench.peak import MIB, Peak
from dyvte.bench.settings import Measurements, Result, Settings, result_of
from dyvte.bench.shapes import MaskedLlama, Prompts
from dyvte.bench.variants import Variant
from dyvte.cost.kv import kv_bytes
from dyvte.decoding.packed import pack
from dyvte.decoding.trace import ExitTrace
from dyvte.timing import seconds_of


def run(settings: Settings, model: MaskedLlama, batch: int, out: Measurements) -> None:
    """Measure one batch size, each variant once: bytes do not vary."""
    prompts = settings.make_prompts(model, batch)
    for variant in settings.make_variants(model, batch):
        out.results.append(_bytes_of(variant, model, prompts, settings.answer_tokens))


def _bytes_of(variant: Variant, model, prompts: Prompts, steps: int) -> Result:
    sessions: list[Session] = []
    with Peak(model.device) as peak:
        seconds = seconds_of(lambda: sessions.append(Session(variant, model, prompts)), model.device)
        session = sessions[0]
        result = result_of(variant, prompts.batch, [seconds])
        trace = session.trace or _without_exit(model, prompts)
        counted = sum(kv_bytes(model.config, trace, model.dtype))
        per_step = counted // int(trace.tokens_per_layer.sum()) * trace.num_layers * prompts.batch
        _note(result, "prefill", session.cache, counted)
        with variant.ready(model):
            session.steps(steps)
        _note(result, "decode", session.cache, counted + steps * per_step)
    result.numbers |= peak.numbers
    return result


def _note(result: Result, when: str, cache, counted: int) -> None:
    held = cache_bytes(cache)
    result.numbers[f"{when}_held_mib"] = held / MIB
    result.numbers[f"{when}_counted_mib"] = counted / MIB
    result.numbers[f"{when}_allocated_mib"] = getattr(cache, "allocated_nbytes", held) / MIB


def _without_exit(model, prompts: Prompts) -> ExitTrace:
    """The trace that transformers' own forward would have left."""
    layout = pack(prompts.inputs_embeds, visual_mask=prompts.visual_mask).layout
    trace = ExitTrace(model.config.num_hidden_layers, layout)
    for _ in range(trace.num_layers):
        trace.record_layer(layout)
    return trace
