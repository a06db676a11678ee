"""Attention logits of chosen queries, for policies that observe attention (:meth:`Policy.observe`).

The fused kernels that run the layers do not return them.

Called by :mod:`dyvte.gates.attention_states`, :mod:`dyvte.reduction.scores` and :mod:`dyvte.study.attention_stats`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dyvte.decoding.attention.interface import AttentionInputs


def causal_logits(inputs: AttentionInputs, queries: Tensor, start: int, stop: int) -> Tensor:
    """Logits of some queries of one sequence over all tokens of the sequence, as the layer computes them.

    Args:
        inputs: of the layer.
        queries: (R,) long, tokens of the row, all within ``start .. stop - 1``.
        start, stop: where the sequence lies in the row.

    Returns:
        (heads, R, stop - start) float32, scaled, soft-capped and biased; -inf at keys that the query does not
        see: later ones that are not of its block, and those outside the layer's window or chunk. A softmax over the
        last dimension gives the attention weights.
    """
    query, key, layout, rule = inputs.query, inputs.key, inputs.layout, inputs.rule
    heads, kv_heads = query.shape[1], key.shape[1]
    chosen = query[0, :, queries].unflatten(0, (kv_heads, heads // kv_heads)).float()
    keys = key[0, :, None, start:stop].float()
    logits = (chosen @ keys.transpose(-1, -2)).flatten(0, 1) * inputs.scaling
    if rule.softcap is not None:
        logits = (logits / rule.softcap).tanh() * rule.softcap
    if layout.bias is not None:
        logits = logits + layout.bias[start:stop]
    blocks = layout.block_ids if rule.blocks else None
    if blocks is None and rule.sees_all(layout.extent):
        seen = torch.arange(start, stop, device=query.device) <= queries[:, None]
    else:
        places = layout.place_ids
        own = (None, None) if blocks is None else (blocks[queries], blocks[start:stop])
        seen = rule.mask(places[queries], places[start:stop], *own)
    return logits.masked_fill_(~seen, float("-inf"))
