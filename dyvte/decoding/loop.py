"""The only loop over decoder layers in the project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn

from dyvte.decoding import attention
from dyvte.decoding.cache import RaggedCache
from dyvte.decoding.packed import PackedRow
from dyvte.decoding.policy import Observer, Policy
from dyvte.decoding.trace import ExitTrace


def run_layers(
    decoder: nn.Module,
    row: PackedRow,
    *,
    policy: Policy | None = None,
    trace: ExitTrace | None = None,
    cache: RaggedCache | None = None,
) -> PackedRow:
    """Run a packed row through all layers and the final norm.

    Args:
        decoder: a Llama-like module with ``layers``, ``norm``, ``rotary_emb`` and ``config``; its own layers run.
        row: states (1, T, D) entering layer 0.
        policy: may edit the row after each layer; None while decoding.
        trace: where policy and loop write what they did; needed with a policy.
        cache: filled on the way, and attended to where it already holds tokens.

    Returns:
        The row after the final norm, with the tokens that are left.
    """
    rope = decoder.rotary_emb(row.hidden, position_ids=row.layout.positions[None])
    with packed_kernel(decoder.config) as kernel:
        for index, layer in enumerate(decoder.layers):
            layout = row.layout
            observe = None
            if trace is not None:
                trace.record_layer(layout)
                if isinstance(policy, Observer):
                    observe = partial(policy.observe, layout=layout, trace=trace)
            hidden = layer(
                row.hidden,
                attention_mask=None,
                position_ids=layout.positions[None],
                position_embeddings=rope,
                packed=attention.PackedContext(layout, cache, kernel, observe),
            )
            row = PackedRow(hidden, layout)
            if policy is not None:
                row = policy.edit(index, row, trace)
                if row.layout is not layout and index + 1 < len(decoder.layers):
                    rope = decoder.rotary_emb(row.hidden, position_ids=row.layout.positions[None])
    return PackedRow(decoder.norm(row.hidden), row.layout)


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
