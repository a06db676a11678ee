"""Which kernel runs on what, decided once for all layers that see the same tokens.

A plan is called by each layer with its queries, keys and values, after these were added to the cache. There are three
situations, and each kernel has a plan for each of them:

- *prefill*: sequences that attend to themselves;
- *chunk*: sequences that continue what the cache holds of their samples;
- *step*: one token per sample against what the cache holds.

Called from :mod:`dyvte.bench`, :mod:`dyvte.decoding`, :mod:`dyvte.engine` and :mod:`llava.chat_model`.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from functools import cache, partial
from typing import Protocol

import torch
from torch import Tensor

from dyvte.decoding.attention import sdpa, varlen
from dyvte.decoding.cache.buffer import KVBuffer
from dyvte.decoding.packed import Layout
from dyvte.families.rules import LayerRule

KERNELS = ("sdpa", "eager", "flash_attention_2", "torch_varlen")
"""Attention implementations with a packed form: SDPA; plain matrix products, the slow reference; the variable-length
kernels of the flash-attn package and of torch."""


AUTO = "auto"
"""In place of a kernel: the fastest that fits (:func:`choose_kernel`)."""
STOCK = {"torch_varlen": "sdpa", AUTO: "sdpa"}
"""What transformers' own forward runs, and a model is loaded with, in place of a kernel that transformers lacks."""


def choose_kernel(
    own: str | None, device: torch.device, dtype: torch.dtype, head_sizes: Collection[int]
) -> str:
    """The kernel of a model whose attention implementation is ``own``.

    In place of SDPA, transformers' default, it is the first that fits of torch's variable-length kernel, that of the
    flash-attn package, and SDPA; other implementations were asked for, and stay. On an H100 torch's kernel took
    0.48 ms for 32 sequences of 60 and 636 tokens, and SDPA, called for each, 1.33 ms (docs/benchmarks/h100-before).
    """
    if own not in (None, "sdpa"):
        return own
    if varlen.torch_varlen_fits(device, dtype, head_sizes):
        return "torch_varlen"
    return "flash_attention_2" if varlen.flash_attention_fits(device, dtype) else "sdpa"


def check_kernel(kernel: str) -> None:
    """Raise ValueError when an attention implementation has no packed form."""
    if kernel not in KERNELS:
        raise ValueError(
            f"attention implementation {kernel!r} cannot run packed rows: load the model with "
            f"attn_implementation set to one of {', '.join(KERNELS)}"
        )


class AttentionPlan(Protocol):
    """Attention of one layout."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, held: KVBuffer | None, scaling: float
    ) -> Tensor:
        """Causal attention within each sequence.

        Args:
            query: (1, heads, T, head_dim), key, value: (1, kv_heads, T, head_dim) of the packed row.
            held: the layer's buffer in the cache, which holds these keys and values already; None without a cache.
            scaling: of the dot products.

        Returns:
            (1, T, heads, head_dim).
        """
        ...


class FilledPlan(AttentionPlan, Protocol):
    """Attention of all rows of one shape, as recorded work needs it: what differs between them lies in buffers.

    Attributes:
        buffers: on the device.
    """

    buffers: tuple[Tensor, ...]

    def load(self, layout: Layout) -> None:
        """Take over where the sequences of a row lie."""
        ...


def make_filled_plan(
    kernel: str, sequences: int, tokens: int, longest: int, rule: LayerRule, device: torch.device
) -> FilledPlan:
    """The plan of prefills of one shape, whose rows are filled up; for layers that see all tokens, without a bias.

    Args:
        kernel: one of :data:`KERNELS`.
        sequences: in the row, besides its filler.
        tokens: of the row, filled up.
        longest: sequence that fits.
    """
    if kernel in varlen.KERNELS:
        return varlen.Filled(varlen.KERNELS[kernel](), sequences, tokens, device)
    attend = partial(sdpa.eager, softcap=rule.softcap) if kernel == "eager" else sdpa.sdpa
    return sdpa.Filled(attend, sequences, tokens, longest, device)


def make_plan(kernel: str, layout: Layout, continued: bool, rule: LayerRule = sdpa.CAUSAL) -> AttentionPlan:
    """The plan of a layout for the layers of one rule.

    Args:
        kernel: one of :data:`KERNELS`.
        continued: whether the cache held tokens of the samples before.

    Raises:
        ImportError: the kernel's package is not installed.
        ValueError: the kernel cannot do what the rule asks for.
    """
    step = continued and max(layout.lengths) == 1
    if rule.softcap is not None and kernel != "eager":
        raise ValueError(
            f"this model caps attention scores, which the kernel {kernel} cannot do: load it with "
            "attn_implementation='eager'"
        )
    causal = rule.sees_all(layout.extent) and (not rule.blocks or layout.block_ids is None)
    if kernel in varlen.KERNELS and layout.sizes is None and causal:
        module = varlen.KERNELS[kernel]()
        if step:  # of the two, one has a kernel for it
            own = isinstance(module, varlen.FlashAttention)
            return varlen.Step(module, layout) if own else sdpa.Step(sdpa.sdpa, layout)
        return varlen.Chunk(module, layout) if continued else varlen.Prefill(module, layout)
    if kernel in varlen.KERNELS:
        _say_once(
            f"{kernel} cannot attend to merged tokens, nor within windows or blocks of tokens: SDPA runs there"
        )
    attend = partial(sdpa.eager, softcap=rule.softcap) if kernel == "eager" else sdpa.sdpa
    if step:
        return sdpa.Step(attend, layout, rule)
    return sdpa.Chunk(attend, layout, rule) if continued else sdpa.Prefill(attend, layout, rule)


@cache
def _say_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
