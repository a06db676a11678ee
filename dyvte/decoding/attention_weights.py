"""Attention logits of chosen queries, for policies that look into attention (``Observer``).

The layers themselves never make them: packed attention runs fused kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def causal_logits(
    query: Tensor,
    key: Tensor,
    queries: Tensor,
    start: int,
    stop: int,
    scaling: float | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Scaled logits of some queries of one segment over all tokens of the segment.

    Args:
        query: (1, heads, T, head_dim) of a packed row, key: (1, kv_heads, T, head_dim), both after rotary embedding.
        queries: (R,) long, tokens of the row, all within ``start .. stop - 1``.
        start, stop: where the segment lies in the row.
        scaling: of the dot products; 1 / sqrt(head_dim) by default.
        sizes: (T,) of how many tokens each is the merged mean (``Layout.sizes``); 1 each by default.

    Returns:
        (heads, R, stop - start) float32, -inf at keys that come after their query. A softmax over the last
        dimension gives the attention weights.
    """
    heads, kv_heads, width = query.shape[1], key.shape[1], query.shape[-1]
    scale = float(width**-0.5 if scaling is None else scaling)
    chosen = query[0, :, queries].unflatten(0, (kv_heads, heads // kv_heads)).float()
    keys = key[0, :, None, start:stop].float()
    logits = (chosen @ keys.transpose(-1, -2)).flatten(0, 1) * scale
    if sizes is not None:
        logits = logits + sizes[start:stop].log()
    later = torch.arange(start, stop, device=query.device) > queries[:, None]
    return logits.masked_fill_(later, float("-inf"))
