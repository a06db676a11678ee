"""Bytes of the KV cache after a prefill, from its trace; for :mod:`dyvte.decoding.trace` and :mod:`dyvte.bench`.

They must equal what the real cache holds (``tests/decoding/test_equalities.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dyvte.cost.layers import each_layer

if TYPE_CHECKING:
    from dyvte.decoding.trace import ExitTrace


def kv_bytes(costs: Any, trace: ExitTrace, dtype: torch.dtype) -> list[int]:
    """Bytes per sample: keys and values of each layer for the tokens that the layer computed.

    Args:
        costs: of the layers (:func:`~dyvte.cost.layers.layer_costs`), or the config of a dense decoder.
        dtype: of the cache.
    """
    layers, per_sample = each_layer(costs), trace.tokens_per_layer.T.tolist()
    return [
        sum(layer.cached * n for layer, n in zip(layers, tokens, strict=True)) * dtype.itemsize
        for tokens in per_sample
    ]
