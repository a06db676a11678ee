"""Attention within the segments of a packed row, as one of transformers' attention functions.

The model's own layers call it through ``ALL_ATTENTION_FUNCTIONS``, so they stay stock. It also fills the cache: a
layer cannot know which token belongs to which sample.

Kernels: SDPA, the variable-length FlashAttention kernel, or plain matrix products ("eager", the slow reference). In
prefill SDPA takes neighbouring segments of equal length in one call; a decoding step takes one call for each group
of samples that the cache keeps side by side, whatever the batch size. Nothing copies the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from dyvte.decoding.cache import RaggedCache, RaggedLayer
from dyvte.decoding.packed import Layout, to_device

NAME = "dyvte_packed"
KERNELS = ("sdpa", "eager", "flash_attention_2")


@dataclass(frozen=True, eq=False)
class PackedContext:
    """What attention must know beyond queries, keys and values: passed through the layers as ``packed=``.

    Attributes:
        observe: called with layer, queries, keys (both after rotary embedding) and values before attention.
    """

    layout: Layout
    cache: RaggedCache | None
    kernel: str
    observe: Callable[[int, Tensor, Tensor, Tensor], None] | None = None


def packed_attention(
    module: Any,
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
        packed.observe(module.layer_idx, query, key, value)
    past = False
    bias = None if layout.sizes is None else layout.sizes.log()
    if packed.cache is not None:
        held = packed.cache.layers[module.layer_idx]
        past = held.is_initialized
        held.append(key, value, layout.lengths, bias)
    flash = packed.kernel == "flash_attention_2"
    if flash and (bias is not None or (past and held.bias is not None)):
        raise ValueError(
            "merged tokens need a bias for each key, which the FlashAttention kernel does not take: load the model "
            "with attn_implementation='sdpa'"
        )
    attend = _eager if packed.kernel == "eager" else _sdpa
    if past and max(layout.lengths) == 1:
        return _step(query, held, _flash_step if flash else attend, scaling), None
    if flash:
        return _flash(query, key, value, held if past else None, layout, scaling), None

    outs = []
    if past:
        for segment, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
            keys, values = held.segment(segment)
            at = slice(start, start + length)
            mask = _biased_mask(held.segment_bias(segment), length)
            outs.append(_rowed(attend(query[:, :, at], keys[None], values[None], mask, scaling)))
    else:
        for start, length, count in layout.runs:
            at = slice(start, start + length * count)
            queries, keys, values = (_batched(states[:, :, at], count) for states in (query, key, value))
            mask = None if bias is None else _biased_mask(bias[at].unflatten(0, (count, length)), length)
            outs.append(_rowed(attend(queries, keys, values, mask, scaling)))
    return (outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)), None


def _step(query: Tensor, held: RaggedLayer, attend: Callable[..., Tensor], scaling: float | None) -> Tensor:
    """One token per sample against all that the cache holds of it: (1, heads, B, d) -> (1, B, heads, d)."""
    queries = query.transpose(0, 2)
    batches = held.batches()
    if held.order is None and len(batches) == 1:
        return attend(queries, *batches[0], scaling).permute(2, 0, 1, 3)
    if held.order is not None:
        queries = queries[held.order]
    parts = queries.split([len(keys) for keys, _, _ in batches])
    out = torch.cat([attend(part, *batch, scaling) for part, batch in zip(parts, batches, strict=True)])
    return (out if held.inverse is None else out[held.inverse]).permute(2, 0, 1, 3)


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


def _biased_mask(bias: Tensor | None, queries: int) -> Tensor | None:
    """A bias per key (S, K) -> (S, 1, queries, K), -inf at keys that come later; None for None."""
    if bias is None:
        return None
    mask = bias[:, None, None].expand(-1, 1, queries, -1)
    causal = _causal_mask(queries, bias.shape[1], bias.device)
    return mask if causal is None else mask.masked_fill(~causal, float("-inf"))


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """(S, heads, Q, d) x (S, kv_heads, K, d) -> (S, heads, Q, d); queries are the last Q tokens.

    ``mask`` (S, 1, Q or 1, K): bool, the keys that count, or what to add to the scores; causal by default.
    """
    square = mask is None and query.shape[2] == key.shape[2]
    if mask is None and not square:
        mask = _causal_mask(query.shape[2], key.shape[2], query.device)
    elif mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=square and query.shape[2] > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _eager(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """As :func:`_sdpa`, by plain matrix products, softmax in float32."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    mask = _causal_mask(query.shape[2], key.shape[2], query.device) if mask is None else mask
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(value) @ value


def _flash(query, key, value, held, layout: Layout, scaling: float | None) -> Tensor:
    """The variable-length FlashAttention kernel: one call for all segments, whatever their lengths."""
    from flash_attn import flash_attn_varlen_func

    keys, values, key_lengths, offsets = key[0], value[0], layout.lengths, layout.offsets
    if held is not None:
        keys, values = held.packed()
        key_lengths = tuple(held.lengths)
        offsets = to_device(np.cumsum((0, *key_lengths), dtype=np.int32), query.device)
    out = flash_attn_varlen_func(
        query[0].transpose(0, 1),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        cu_seqlens_q=layout.offsets,
        cu_seqlens_k=offsets,
        max_seqlen_q=max(layout.lengths),
        max_seqlen_k=max(key_lengths),
        softmax_scale=scaling,
        causal=True,
    )
    return out[None]


def _flash_step(query, key, value, filled: Tensor | None, scaling: float | None) -> Tensor:
    """As :func:`_sdpa` for single queries, by the FlashAttention kernel that reads a cache with room to grow."""
    from flash_attn import flash_attn_with_kvcache

    lengths = None
    if filled is not None:
        lengths = filled.flatten(1).sum(1, dtype=torch.int32)
    out = flash_attn_with_kvcache(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        cache_seqlens=lengths,
        softmax_scale=scaling,
    )
    return out.transpose(1, 2)


AttentionInterface.register(NAME, packed_attention)
