"""The only loop over decoder layers in the project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from dyvte.cost.flops import layer_flops
from dyvte.decoding import attention
from dyvte.decoding.cache import RaggedCache
from dyvte.decoding.graphs import Graphs
from dyvte.decoding.packed import Layout, PackedRow
from dyvte.decoding.policy import Entrance, LookingAhead, Observer, Policy, ValueObserver
from dyvte.decoding.trace import ExitTrace


def run_layers(
    decoder: Any,
    row: PackedRow,
    *,
    policy: Policy | None = None,
    trace: ExitTrace | None = None,
    cache: RaggedCache | None = None,
    graphs: Graphs | None = None,
) -> PackedRow:
    """Run a packed row through all layers and the final norm.

    Args:
        decoder: a Llama-like module with ``layers``, ``norm``, ``rotary_emb`` and ``config``; its own layers run.
        row: states (1, T, D) entering layer 0.
        policy: may edit the row before the first layer and after each; None while decoding.
        trace: where policy and loop write what they did; needed with a policy.
        cache: filled on the way, and attended to where it already holds tokens.
        graphs: replays the layers that see text alone, where the policy ignores them.

    Returns:
        The row after the final norm, with the tokens that are left.
    """
    if isinstance(policy, Entrance) and trace is not None:
        row = policy.enter(row, trace)
    observe = _observer(policy, trace)
    looking = policy if isinstance(policy, LookingAhead) and policy.ahead else None
    layout: Any = None
    ahead: Tensor | None = None  # what the next layer gives, should all tokens enter it
    with packed_kernel(decoder.config) as kernel:

        def compute(layer: Any, hidden: Tensor) -> Tensor:
            return layer(
                hidden,
                attention_mask=None,
                position_ids=layout.positions[None],
                position_embeddings=rope,
                packed=context,
            )

        for index, layer in enumerate(decoder.layers):
            if row.layout is not layout:  # what all layers share that see these tokens
                layout = row.layout
                if graphs is not None and getattr(policy, "ignores_text", policy is None):
                    done = graphs.text_layers(decoder, index, row, cache, kernel)
                    if done is not None:
                        if trace is not None:
                            trace.record_layer(layout, times=len(decoder.layers) - index)
                        row = done
                        break
                rope = decoder.rotary_emb(row.hidden, position_ids=layout.positions[None])
                context = attention.PackedContext(layout, cache, kernel, observe and observe(layout))
            if trace is not None:
                trace.record_layer(layout)
            row = PackedRow(compute(layer, row.hidden) if ahead is None else ahead, layout)
            ahead = None
            if policy is None:
                continue
            assert trace is not None, "a policy needs a trace"
            if looking is None or index + 1 == len(decoder.layers):
                row = policy.edit(index, row, trace)
            elif (answer := looking.ask(index, row, trace)) is not None:
                ahead = compute(decoder.layers[index + 1], row.hidden)
                row = looking.obey(index, row, answer, trace)
                if row.layout is not layout:
                    ahead = None
                    _take_back(index + 1, decoder.config, layout, trace, cache)
    return PackedRow(decoder.norm(row.hidden), row.layout)


def _take_back(layer: int, config, layout: Layout, trace: ExitTrace, cache: RaggedCache | None) -> None:
    """Forget the keys and values that a layer left for nothing, and count its FLOPs among those of deciding."""
    if cache is not None:
        cache.layers[layer].take_back(layout.lengths)
    for sample, tokens in zip(layout.samples, layout.lengths, strict=True):
        trace.record_scores(layer, sample, layer_flops(config, tokens))


def _observer(policy: Policy | None, trace: ExitTrace | None):
    """layout -> what attention is to call with (layer, query, key, value); None where the policy does not look."""
    if trace is None or not isinstance(policy, (Observer, ValueObserver)):
        return None
    keys = policy.observe if isinstance(policy, Observer) else None
    values = policy.observe_values if isinstance(policy, ValueObserver) else None

    def observe(layout: Layout, layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        if keys is not None:
            keys(layer, query, key, layout, trace)
        if values is not None:
            values(layer, value, layout, trace)

    return lambda layout: partial(observe, layout)


@contextmanager
def packed_kernel(config) -> Iterator[str]:
    """Let the layers of ``config`` call packed attention for a while; yields the kernel they were set to.

    Raises:
        ValueError: when the model's attention implementation has no packed form.
    """
    kernel = config._attn_implementation or "sdpa"
    if kernel not in attention.KERNELS:
        raise ValueError(
            f"attention implementation {kernel!r} cannot run packed rows: load the model with "
            f"attn_implementation set to one of {', '.join(attention.KERNELS)}"
        )
    previous = config._attn_implementation_internal
    config._attn_implementation_internal = attention.NAME
    try:
        yield kernel
    finally:
        config._attn_implementation_internal = previous
