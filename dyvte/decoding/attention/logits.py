"""Attention logits of chosen queries, for policies that observe attention.

The layers themselves never make them: packed attention runs fused kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dyvte.decoding.attention.interface import AttentionInputs


def causal_logits(inputs: AttentionInputs, queries: Tensor, start: int, stop: int) -> Tensor:
    """Logits of some queries of one sequence over all tokens of the sequence, scaled and biased as the layer does it.

    Args:
        inputs: of the layer.
        queries: (R,) long, tokens of the row, all within ``start .. stop - 1``.
        start, stop: where the sequence lies in the row.

    Returns:
        (heads, R, stop - start) float32, -inf at keys that come after their query. A softmax over the last
        dimension gives the attention weights.
    """
    query, key, bias = inputs.query, inputs.key, inputs.layout.bias
    heads, kv_heads = query.shape[1], key.shape[1]
    chosen = query[0, :, queries].unflatten(0, (kv_heads, heads // kv_heads)).float()
    keys = key[0, :, None, start:stop].float()
    logits = (chosen @ keys.transpose(-1, -2)).flatten(0, 1) * inputs.scaling
    if bias is not None:
        logits = logits + bias[start:stop]
    later = torch.arange(start, stop, device=query.device) > queries[:, None]
    return logits.masked_fill_(later, float("-inf"))
