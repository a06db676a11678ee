"""Packed attention as one of transformers' attention functions.

The model's own layers call it through ``ALL_ATTENTION_FUNCTIONS``, so they stay stock. It also fills the cache: a
layer cannot know which token belongs to which sample.

Called from most of the project.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import AttentionInterface

from dyvte.decoding.attention.plan import AttentionPlan, check_kernel
from dyvte.decoding.attention.sdpa import CAUSAL
from dyvte.decoding.cache.ragged import RaggedCache
from dyvte.decoding.packed import Layout
from dyvte.families.rules import LayerRule

NAME = "dyvte_packed"
# What stock layers pass on that changes nothing here: positions are in the rotary embedding already.
_WITHOUT_EFFECT = frozenset(
    {"position_ids", "use_cache", "cache_position", "past_key_values", "output_attentions"}
)


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """What one layer's attention works on.

    Attributes:
        query: (1, heads, T, head_dim), key: (1, kv_heads, T, head_dim), both after rotary embedding.
        value: (1, kv_heads, T, head_dim).
        layout: of the row's T tokens.
        scaling: of the dot products.
        rule: of the layer.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    layout: Layout
    scaling: float
    rule: LayerRule = CAUSAL


@dataclass(frozen=True, eq=False)
class PackedContext:
    """What attention must know beyond queries, keys and values: passed through the layers as ``packed=``.

    Attributes:
        layout: of the row.
        plan: how this layout is computed.
        rule: of the layer.
        cache: filled on the way; None without.
        rescale: see :meth:`dyvte.families.stack.Stack.rescale`.
        observe: called before attention with what it works on.
    """

    layout: Layout
    plan: AttentionPlan
    cache: RaggedCache | None
    rule: LayerRule = CAUSAL
    observe: Callable[[AttentionInputs], None] | None = None
    rescale: Callable[[Any, Tensor, Layout], Tensor] | None = None


def packed_attention(
    module: Any,  # any family's attention module; of it only ``layer_idx`` is read
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    packed: PackedContext,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each sequence over itself and what the cache holds of its sample.

    Args:
        query: (1, heads, T, head_dim) of the packed row.
        key, value: (1, kv_heads, T, head_dim).
        sliding_window, softcap: of the layer, as its rule has them.
        packed: layout, plan and cache.

    Returns:
        (1, T, heads, head_dim), and None for the weights, which are never made.

    Raises:
        ValueError: an argument would change the result in a way that is not computed here.
    """
    layout, rule = packed.layout, packed.rule
    if attention_mask is not None or dropout or not kwargs.keys() <= _WITHOUT_EFFECT:
        _refuse(attention_mask=attention_mask, dropout=dropout or None, **kwargs)
    if sliding_window not in (None, rule.window) or softcap != rule.softcap:
        _refuse(sliding_window=sliding_window, softcap=softcap)
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    if packed.rescale is not None:
        query = packed.rescale(module, query, layout)
    if packed.observe is not None:
        packed.observe(AttentionInputs(query, key, value, layout, scale, rule))
    held = None
    if packed.cache is not None:
        layer = packed.cache.layers[module.layer_idx]
        layer.append(key, value, layout.lengths, layout.bias, layout.place_ids if rule.local else None)
        held = layer.buffer
    return packed.plan(query, key, value, held, scale), None


def _refuse(**arguments: Any) -> None:
    """Raise ValueError for an argument of a stock layer that packed attention would have to drop."""
    for name, value in arguments.items():
        if value is not None and name not in _WITHOUT_EFFECT:
            shown = value if isinstance(value, (int, float)) else "..."
            raise ValueError(
                f"this model's layers call attention with {name}={shown}, which packed attention does not compute: "
                "exits are not available for it"
            )


AttentionInterface.register(NAME, packed_attention)

_lock = threading.Lock()
_in_use: dict[int, tuple[int, str | None]] = {}
"""id(config) -> how many forwards run on it now, and the attention implementation it had before them."""


@contextmanager
def packed_layers(config: Any, kernel: str | None = None) -> Generator[str]:
    """Let the layers of ``config`` call packed attention for a while.

    Several threads may do so at once: the config goes back to its own implementation when the last one ends.

    Yields:
        the kernel: by default the one that the layers were set to.

    Raises:
        ValueError: the kernel has no packed form.
    """
    with _lock:
        users, own = _in_use.get(id(config), (0, config._attn_implementation_internal))
        kernel = kernel or own or "sdpa"
        check_kernel(kernel)
        _in_use[id(config)] = users + 1, own
        config._attn_implementation_internal = NAME
    try:
        yield kernel
    finally:
        with _lock:
            users, own = _in_use[id(config)]
            if users == 1:
                del _in_use[id(config)]
                config._attn_implementation_internal = own
            else:
                _in_use[id(config)] = users - 1, own
