"""Settings and results that the bench's commands share.

Called throughout :mod:`dyvte.bench`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from dyvte.bench.shapes import (
    VISUAL_TOKENS,
    MaskedLlama,
    Prompts,
    config_of,
    random_model,
    random_prompts,
    random_vlm,
)
from dyvte.bench.variants import Variant, check_kernels, make_variants
from dyvte.decoding.attention.plan import STOCK, choose_kernel
from dyvte.engine.run import default_workers

FROM_IMAGES = ("ttft", "throughput")
"""Commands that measure more than the decoder."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Settings:
    """The flags of ``python -m dyvte.bench``; see its ``--help``."""

    command: str
    model: str = "7b"
    layers: int | None = None
    dtype: str = "bf16"
    device: str = "cpu"
    batch: list[int] = field(default_factory=lambda: [1])
    exit_layers: list[int | str] = field(default_factory=list)
    variants: list[str] | None = None
    prompt_tokens: int = 60
    visual_tokens: int = VISUAL_TOKENS["llava-1.5"]
    answer_tokens: int = 16
    attn: str = "sdpa"
    gate_width: int = 2048
    threads: int | None = None
    rounds: int = 7
    warmup: int = 1
    allow_unequal_kernels: bool = False
    images: str | None = None
    questions: int = 128
    workers: list[int] = field(default_factory=lambda: [default_workers()])
    progress: bool = False

    def make_model(self) -> MaskedLlama | LlavaForConditionalGeneration:
        """The model to measure, with a tower where the command begins at images, with the baseline's kernel."""
        make = random_vlm if self.command in FROM_IMAGES else random_model
        model = make(self.model, self.layers, DTYPES[self.dtype], self.device)
        model.set_attn_implementation(STOCK.get(self.attn, self.attn))
        return model

    def usual_kernel(self) -> str:
        """The attention kernel that ``attach`` takes for this model with "auto"."""
        config = config_of(self.model, 1)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return choose_kernel(None, torch.device(self.device), DTYPES[self.dtype], [width])

    def make_prompts(self, model, batch: int) -> Prompts:
        """``batch`` prompts of the lengths that were asked for."""
        return random_prompts(model, batch, self.prompt_tokens, self.visual_tokens)

    def make_variants(self, model, batch: int) -> list[Variant]:
        """The variants, by default with one exit in the middle of the decoder, and mixed exits.

        Raises:
            ValueError: when they use different attention kernels and that was not allowed.
        """
        middle = (model.config.get_text_config().num_hidden_layers - 1) // 2
        exits = self.exit_layers or [middle, "mixed"]
        found = make_variants(model, batch, exits, self.attn, self.variants, self.gate_width, self.command)
        check_kernels(found, self.allow_unequal_kernels)
        return found


@dataclass
class Result:
    """One variant at one batch size.

    Attributes:
        kernel: its attention kernel.
        exit_layer: the layer after which images left, "mixed", or None.
        seconds: of each round.
        ideal: the best such exits could take, of the same rounds; None where that is not defined.
        flops_ideal: seconds of the baseline's median times this variant's share of its FLOPs.
        numbers: further figures by name.
    """

    batch: int
    variant: str
    kernel: str
    exit_layer: int | str | None
    seconds: list[float]
    ideal: list[float] | None = None
    flops_ideal: float | None = None
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def efficiency(self) -> list[float] | None:
        """Ideal over measured seconds, round by round."""
        if self.ideal is None:
            return None
        return [best / taken for best, taken in zip(self.ideal, self.seconds, strict=True)]


@dataclass
class Measurements:
    """What a command measured.

    Attributes:
        regimes: what limits a layer, a line for each batch size; see :mod:`dyvte.bench.rates`.
        layers: seconds per layer by name, medians over rounds.
    """

    results: list[Result] = field(default_factory=list)
    regimes: list[dict[str, Any]] = field(default_factory=list)
    layers: dict[str, list[float]] = field(default_factory=dict)


def result_of(variant: Variant, batch: int, seconds: list[float], ideal: list[float] | None = None) -> Result:
    return Result(batch, variant.name, variant.kernel, variant.exit_layer, seconds, ideal)


def fill_flops_ideal(results: list[Result], flops: dict[str, float]) -> None:
    """Note FLOPs, by variant, and the seconds they would take at the baseline's FLOP/s."""
    base = next((result for result in results if result.variant == "baseline"), None)
    for result in results:
        result.numbers["tflops"] = flops[result.variant] / 1e12
        if base is not None:
            share = flops[result.variant] / flops["baseline"]
            result.flops_ideal = median(base.seconds) * share
