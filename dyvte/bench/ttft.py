"""Seconds from pixels to the first token's logits, and what each part of the model takes of them.

The parts are seen from the beginning and the end of their modules: *splice* is all that happens before the decoder
outside of tower and projector, *decoder* all of its layers with the final norm, gates and edits.

Called by :mod:`dyvte.bench`.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from transformers import LlavaForConditionalGeneration

from dyvte.bench.settings import Measurements, Settings, result_of
from dyvte.bench.shapes import PixelPrompts, pixel_prompts
from dyvte.bench.variants import Variant
from dyvte.families.base import adapter_for
from dyvte.timing import Clock, interleaved, seconds_of

PARTS = ("tower", "projector", "splice", "decoder", "head")


def run(settings: Settings, model: LlavaForConditionalGeneration, batch: int, out: Measurements) -> None:
    """Measure one batch size."""
    prompts = pixel_prompts(model, batch, settings.prompt_tokens, settings.visual_tokens)
    variants = settings.make_variants(model, batch)
    tasks: dict[str, Callable[[], Any]] = {
        variant.name: lambda variant=variant: timed(variant, model, prompts) for variant in variants
    }
    measured = interleaved(tasks, settings.rounds, settings.warmup, settings.progress)
    for variant in variants:
        runs: list[tuple[float, dict[str, float]]] = measured[variant.name]
        result = result_of(variant, batch, [total for total, _ in runs])
        for part in PARTS:
            result.numbers[f"{part}_ms"] = 1e3 * median([parts[part] for _, parts in runs])
        result.numbers |= variant.memory(model, lambda variant=variant: variant.prefill(model, prompts))
        out.results.append(result)


def timed(
    variant: Variant, model: LlavaForConditionalGeneration, prompts: PixelPrompts
) -> tuple[float, dict[str, float]]:
    """Seconds of one prefill, and of its parts."""
    adapter = adapter_for(model)
    tower, projector = adapter.vision(model)
    points = [(model, False), (tower, False), (projector, False), (projector, True)]
    points += [(adapter.decoder(model), False), (model.lm_head, False), (model, True)]
    clock = Clock(points, model.device)
    with variant.ready(model):
        variant.prefill(model, prompts)  # the first one after attach counts the tower's FLOPs, in Python
        with clock.running():
            total = seconds_of(lambda: variant.prefill(model, prompts), model.device)
    before, seen, projected, placed, decoded, head = clock.seconds()
    return total, dict(zip(PARTS, (seen, projected, before + placed, decoded, head), strict=True))
