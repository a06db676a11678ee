"""Plans for kernels that take sequences of any lengths in one call, by the offsets at which they begin.

Two packages have one: ``flash-attn``, and torch itself (``torch.nn.attention.varlen``, from 2.11). Both need CUDA and
half precision. Neither takes a bias for each key, or windows that count removed tokens, so such rows go to SDPA
(:func:`~dyvte.decoding.attention.plan.make_plan`).
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Collection
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dyvte.cli import extra
from dyvte.decoding.attention import sdpa
from dyvte.decoding.cache.buffer import KVBuffer
from dyvte.decoding.packed import Layout, to_device


class VarlenKernel(Protocol):
    """A variable-length kernel."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        offsets: tuple[Tensor, Tensor],
        longest: tuple[int, int],
        scaling: float,
    ) -> Tensor:
        """Causal attention, queries being the last tokens of their sequences.

        Args:
            query: (T, heads, d), key, value: (K, kv_heads, d), sequences one after another.
            offsets: (G + 1,) int32, where queries and keys of each sequence begin and the last ones end.
            longest: most queries and most keys of a sequence.

        Returns:
            (T, heads, d).
        """
        ...


class FlashAttention:
    """The flash-attn package."""

    def __init__(self) -> None:
        with extra("flash"):
            import flash_attn

        self._package = flash_attn

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        offsets: tuple[Tensor, Tensor],
        longest: tuple[int, int],
        scaling: float,
    ) -> Tensor:
        return self._package.flash_attn_varlen_func(
            query,
            key,
            value,
            cu_seqlens_q=offsets[0],
            cu_seqlens_k=offsets[1],
            max_seqlen_q=longest[0],
            max_seqlen_k=longest[1],
            softmax_scale=scaling,
            causal=True,
        )

    def step(
        self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None, scaling: float
    ) -> Tensor:
        """One query per sample over a cache with unused capacity at its end.

        Args:
            query: (S, heads, 1, d), key, value: (S, kv_heads, K, d).
            lengths: (S,) int32, keys of each sample; None where all K count.

        Returns:
            (S, heads, 1, d).
        """
        out = self._package.flash_attn_with_kvcache(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            cache_seqlens=lengths,
            softmax_scale=scaling,
        )
        return out.transpose(1, 2)


class TorchVarlen:
    """torch's own kernel."""

    def __init__(self) -> None:
        kernel = _torch_kernel()
        if kernel is None:
            raise ImportError(
                f"torch_varlen needs torch 2.11 or newer, this is {torch.__version__}: use sdpa"
            )
        self._kernel = kernel

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        offsets: tuple[Tensor, Tensor],
        longest: tuple[int, int],
        scaling: float,
    ) -> Tensor:
        if query.device.type != "cuda" or query.dtype == torch.float32:
            raise ValueError(
                f"torch_varlen needs CUDA and half precision, the states are {query.dtype} on {query.device}: attach "
                "again after moving a model, or use sdpa"
            )
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:  # early versions take as many heads of keys as of queries
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        out = self._kernel(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            *offsets,
            *longest,
            scale=scaling,
            window_size=(-1, 0),
        )
        assert isinstance(out, Tensor)
        return out


@cache
def _torch_kernel() -> Callable[..., object] | None:
    """torch's kernel; None where it is missing, or as in 2.10, where it has no window."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def torch_varlen_fits(device: torch.device, dtype: torch.dtype, head_sizes: Collection[int]) -> bool:
    """Whether torch's kernel can run here: it is FlashAttention, which needs compute capability 8.0."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and all(size % 8 == 0 and size <= 256 for size in head_sizes)
        and _torch_kernel() is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def flash_attention_fits(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the flash-attn package is installed and can run here."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and importlib.util.find_spec("flash_attn") is not None
    )


KERNELS = {"flash_attention_2": FlashAttention, "torch_varlen": TorchVarlen}
"""By name of the attention implementation."""


class Prefill:
    """Sequences that attend to themselves, in one call whatever their lengths."""

    def __init__(self, kernel: VarlenKernel, layout: Layout) -> None:
        self._kernel, self._offsets, self._longest = kernel, layout.offsets, max(layout.lengths)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, held: KVBuffer | None, scaling: float
    ) -> Tensor:
        queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
        offsets, longest = (self._offsets, self._offsets), (self._longest, self._longest)
        return self._kernel.attend(queries, keys, values, offsets, longest, scaling)[None]


class Filled:
    """:class:`Prefill` for rows of one shape, in which sequences may have any lengths: offsets lie in one place.

    Args:
        sequences: in the row, besides its filler, which is one more.
        tokens: of the row, filled up.
    """

    def __init__(self, kernel: VarlenKernel, sequences: int, tokens: int, device: torch.device) -> None:
        self._kernel, self._tokens = kernel, tokens
        self.buffers = (torch.full((sequences + 2,), tokens, dtype=torch.int32, device=device),)

    def load(self, layout: Layout) -> None:
        """Take over where the sequences lie."""
        self.buffers[0][:-1].copy_(layout.offsets)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, held: KVBuffer | None, scaling: float
    ) -> Tensor:
        queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
        offsets, longest = (self.buffers[0], self.buffers[0]), (self._tokens, self._tokens)
        return self._kernel.attend(queries, keys, values, offsets, longest, scaling)[None]


class Chunk:
    """Sequences that continue what the cache holds, whose keys and values are copied together."""

    def __init__(self, kernel: VarlenKernel, layout: Layout) -> None:
        self._kernel, self._offsets, self._longest = kernel, layout.offsets, max(layout.lengths)
        self._fallback = sdpa.Chunk(sdpa.sdpa, layout)
        self._held: list[
            int
        ] = []  # most layers hold the same lengths: copied to the device once for all of them
        self._held_offsets = self._offsets

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, held: KVBuffer | None, scaling: float
    ) -> Tensor:
        assert held is not None, "a chunk continues a cache"
        if held.bias is not None:
            return self._fallback(query, key, value, held, scaling)
        queries, keys, values = (states.transpose(0, 1) for states in (query[0], *held.packed()))
        lengths = held.lengths
        if lengths != self._held:
            offsets = np.cumsum((0, *lengths), dtype=np.int32)
            self._held, self._held_offsets = lengths, to_device(offsets, query.device)
        offsets, longest = (self._offsets, self._held_offsets), (self._longest, max(lengths))
        return self._kernel.attend(queries, keys, values, offsets, longest, scaling)[None]


class Step(sdpa.Step):
    """One token per sample; groups of samples with unused capacity are read by their lengths instead of a mask."""

    def __init__(self, kernel: FlashAttention, layout: Layout) -> None:
        super().__init__(self._by_length, layout)
        self._kernel = kernel

    def _by_length(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        if mask is not None and mask.dtype != torch.bool:  # a bias of merged tokens
            return sdpa.sdpa(query, key, value, mask, scaling)
        lengths = None if mask is None else mask.flatten(1).sum(1, dtype=torch.int32)
        return self._kernel.step(query, key, value, lengths, scaling)
