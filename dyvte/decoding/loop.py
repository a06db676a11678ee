"""The only loop over decoder layers in the project.

Called from :mod:`dyvte.decoding` and :mod:`dyvte.gates`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from dyvte.decoding.attention.interface import AttentionInputs, PackedContext, packed_layers
from dyvte.decoding.attention.plan import make_plan
from dyvte.decoding.cache.ragged import RaggedCache
from dyvte.decoding.packed import PackedRow
from dyvte.decoding.policy import Policy
from dyvte.decoding.trace import ExitTrace
from dyvte.families.stack import Stack

if TYPE_CHECKING:
    from dyvte.decoding.graphs.graphs import Graphs
    from dyvte.decoding.graphs.rows import RecordedLayers


def run_layers(
    stack: Stack,
    row: PackedRow,
    *,
    policy: Policy | None = None,
    trace: ExitTrace | None = None,
    cache: RaggedCache | None = None,
    graphs: Graphs | None = None,
    kernel: str | None = None,
) -> PackedRow:
    """Run a packed row through all layers and the final norm.

    Args:
        stack: the decoder as its family has it; its own layers run.
        row: states (1, T, D) entering layer 0.
        policy: may edit the row before the first layer and after each; None while decoding.
        trace: where policy and loop write what they did; needed with a policy.
        cache: filled on the way, and attended to where it already holds tokens.
        graphs: replays layers with a policy's probes, where they were recorded.
        kernel: of attention, see :data:`~dyvte.decoding.attention.plan.KERNELS`; by default that of the config.

    Returns:
        The row after the final norm, with the tokens that are left.

    Raises:
        ValueError: the decoder's attention has no packed form, or computes what packed attention does not.
    """
    if (policy is None) != (trace is None):
        raise ValueError("a policy needs a trace to write to, and a trace a policy")
    with packed_layers(stack.config, kernel) as kernel, ExitStack() as stretch:
        if policy is not None and trace is not None:
            row = policy.enter(row, trace)
        layers: Layers | RecordedLayers | None = None
        for index, device in enumerate(stack.devices):
            row = row if device is None else row.to(device)
            if layers is None or layers.layout is not row.layout:
                stretch.close()  # a stretch: layers over one layout
                plain = layers = Layers(stack, row, cache, kernel, first=index)
                if graphs is not None and policy is not None and trace is not None:
                    layers = graphs.layers(plain, index, row, policy, trace, stretch) or plain
            if policy is None or trace is None:
                row = PackedRow(layers(index, row.hidden), row.layout)
                continue
            observe = (
                partial(policy.observe, index, trace=trace) if policy.observes(index, row.layout) else None
            )
            trace.record_layer(row.layout)
            row = policy.edit(index, PackedRow(layers(index, row.hidden, observe), row.layout), trace)
        hidden = stack.before(len(stack.layers), row.hidden, row.layout)
        hidden = stack.norm(hidden)
        return PackedRow(hidden, row.layout.to(hidden.device))


class Layers:
    """The decoder's layers from ``first`` on, over one layout: what all of them share is made once.

    Attributes:
        stack, layout, cache, kernel: what they run on.
        continued: whether the cache held tokens of the samples before.
        positions: (1, T) or (axes, 1, T), of the tokens.
        ropes: rotary embeddings of the tokens, by kind of layer.
    """

    def __init__(
        self, stack: Stack, row: PackedRow, cache: RaggedCache | None, kernel: str, first: int = 0
    ) -> None:
        self.stack, self.layout, self.cache, self.kernel = stack, row.layout, cache, kernel
        self.continued = cache is not None and cache.layers[first].is_initialized
        positions = row.layout.positions
        self._modules = tuple(stack.layers)  # a ModuleList takes microseconds to find one by its number
        self.positions = positions[None] if positions.ndim == 1 else positions[:, None]
        self.ropes = stack.ropes(row.hidden, self.positions)
        self._contexts = {
            kind: PackedContext(
                row.layout,
                make_plan(kernel, row.layout, self.continued, rule),
                cache,
                rule,
                rescale=stack.rescale,
            )
            for kind, rule in dict(zip(stack.kinds[first:], stack.rules[first:], strict=True)).items()
        }

    def __call__(
        self, index: int, hidden: Tensor, observe: Callable[[AttentionInputs], None] | None = None
    ) -> Tensor:
        """States (1, T, D) after layer ``index``, given those before it."""
        stack, kind = self.stack, self.stack.kinds[index]
        context = self._contexts[kind]
        hidden = stack.before(index, hidden, self.layout)
        if observe is not None:
            context = replace(context, observe=observe)
        return stack.run(index, self._modules[index], hidden, self.ropes[kind], self.positions, context)
