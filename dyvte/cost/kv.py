"""Bytes of keys and values held after prefill, from its trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from dyvte.decoding.trace import ExitTrace


def kv_bytes(config: Any, trace: ExitTrace, dtype: torch.dtype) -> list[int]:
    """Bytes per sample: keys and values of every token that every layer computed.

    Args:
        config: the decoder's config.
        dtype: of the cache.
    """
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    per_token = 2 * kv_heads * width * dtype.itemsize
    return [tokens * per_token for tokens in trace.tokens_per_layer.sum(0).tolist()]
