"""Attention within the segments of a packed row, as one of transformers' attention functions.

The model's own layers call it through ``ALL_ATTENTION_FUNCTIONS``, so they stay stock. It also fills the cache: a
layer cannot know which token belongs to which sample.

Kernels: SDPA (one call for segments of equal length, else one per segment), the variable-length FlashAttention
kernel, or plain matrix products ("eager", the slow reference).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from dyvte.decoding.cache import RaggedCache
from dyvte.decoding.packed import Layout

NAME = "dyvte_packed"
KERNELS = ("sdpa", "eager", "flash_attention_2")


@dataclass(frozen=True, eq=False)
class PackedContext:
    """What attention must know beyond queries, keys and values: passed through the layers as ``packed=``.

    Attributes:
        observe: called with layer, queries and keys (after rotary embedding) before attention.
    """

    layout: Layout
    cache: RaggedCache | None
    kernel: str
    observe: Callable[[int, Tensor, Tensor], None] | None = None


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed: PackedContext,
    **kwargs,
) -> tuple[Tensor, None]:
    """Causal attention of each segment over itself and what the cache holds of its sample.

    Args:
        query: (1, heads, T, head_dim) of the packed row.
        key, value: (1, kv_heads, T, head_dim).
        packed: layout, cache and kernel.

    Returns:
        (1, T, heads, head_dim), and None for the weights, which are never made.
    """
    layout = packed.layout
    if packed.observe is not None:
        packed.observe(module.layer_idx, query, key)
    past = False
    if packed.cache is not None:
        held = packed.cache.layers[module.layer_idx]
        past = held.is_initialized
        held.append(key, value, layout.lengths)
    if packed.kernel == "flash_attention_2":
        return _flash(query, key, value, held if past else None, layout, scaling), None

    attend = _eager if packed.kernel == "eager" else _sdpa
    samples = len(layout.lengths)
    if past and layout.uniform and held.uniform:
        keys, values = held.batched()
        out = attend(_batched(query, samples), keys, values, scaling)
        return _rowed(out), None
    if not past and layout.uniform:
        out = attend(*(_batched(states, samples) for states in (query, key, value)), scaling)
        return _rowed(out), None

    outs = []
    for segment, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
        at = slice(start, start + length)
        keys, values = held.segment(segment) if past else (key[0, :, at], value[0, :, at])
        outs.append(_rowed(attend(query[:, :, at], keys[None], values[None], scaling)))
    return torch.cat(outs, dim=1), None


def _batched(states: Tensor, samples: int) -> Tensor:
    """(1, heads, samples * length, head_dim) -> (samples, heads, length, head_dim), a view."""
    return states[0].unflatten(1, (samples, -1)).transpose(0, 1)


def _rowed(states: Tensor) -> Tensor:
    """(samples, heads, length, head_dim) -> (1, samples * length, heads, head_dim)."""
    return states.transpose(1, 2).flatten(0, 1)[None]


def _causal_mask(queries: int, keys: int, device) -> Tensor | None:
    """Lower-right causal mask (queries, keys), or None where every query sees every key."""
    if queries == 1:
        return None
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """(S, heads, Q, d) x (S, kv_heads, K, d) -> (S, heads, Q, d); queries are the last Q tokens."""
    square = query.shape[2] == key.shape[2]
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if square else _causal_mask(query.shape[2], key.shape[2], query.device),
        is_causal=square and query.shape[2] > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _eager(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """As :func:`_sdpa`, by plain matrix products, softmax in float32."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    mask = _causal_mask(query.shape[2], key.shape[2], query.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(value) @ value


def _flash(query, key, value, held, layout: Layout, scaling: float | None) -> Tensor:
    """The variable-length FlashAttention kernel: one call for all segments, whatever their lengths."""
    from flash_attn import flash_attn_varlen_func

    key_lengths = layout.lengths
    keys, values = key[0], value[0]
    if held is not None:
        keys, values = held.packed()
        key_lengths = tuple(held.lengths)
    out = flash_attn_varlen_func(
        query[0].transpose(0, 1),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        cu_seqlens_q=_cumulative(layout.lengths, query.device),
        cu_seqlens_k=_cumulative(key_lengths, query.device),
        max_seqlen_q=max(layout.lengths),
        max_seqlen_k=max(key_lengths),
        softmax_scale=scaling,
        causal=True,
    )
    return out[None]


def _cumulative(lengths: tuple[int, ...], device) -> Tensor:
    """(G,) lengths -> (G + 1,) int32 offsets."""
    offsets = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return offsets.to(device, non_blocking=True)


AttentionInterface.register(NAME, packed_attention)
