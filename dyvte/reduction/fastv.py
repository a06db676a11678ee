"""FastV (arXiv:2403.06764): from layer K on, only the visual tokens that the last token attended to most.

Registered in ``dyvte/methods.py``, its fields as settings; must agree with ``tests/reduction/plain.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from dyvte.decoding.attention.interface import AttentionInputs
from dyvte.decoding.packed import Layout, PackedRow
from dyvte.decoding.policy import Policy
from dyvte.decoding.trace import ExitTrace
from dyvte.reduction.scores import check_share, keep_highest, kept_count, observe_attention


@dataclass(frozen=True)
class FastV(Policy):
    """Layers 0..k-1 see all visual tokens, layers k.. the share ``1 - r`` of them.

    They are ranked by the attention that the last prompt token gives them in layer ``k - 1``, averaged over heads.
    Only that query's attention is computed beside the attention kernel, and its FLOPs are counted in the trace. As in
    the paper's code, tokens keep order and position; several images of a sample are ranked together. The code's K = 0
    (random tokens) is :class:`~dyvte.reduction.random_drop.RandomDrop`.

    Args:
        k: the first layer without the dropped tokens, 1 or more.
        r: share of visual tokens that is dropped, in [0, 1].
    """

    k: int = 2
    r: float = 0.5

    def __post_init__(self) -> None:
        check_share("FastV's r", self.r)

    def check(self, num_layers: int, hidden_size: int) -> None:
        if not 1 <= self.k < num_layers:
            raise ValueError(f"FastV's k must be one of 1..{num_layers - 1}, got {self.k}")

    def observes(self, layer: int, layout: Layout) -> bool:
        return layer == self.k - 1 and self.r > 0

    def observe(self, layer: int, inputs: AttentionInputs, trace: ExitTrace) -> None:
        trace.scratch[self] = observe_attention(layer, inputs, trace)

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        if layer != self.k - 1 or self.r == 0:
            return row
        layout = row.layout
        counts = {s: kept_count(layout.visual[s], 1 - self.r) for s in layout.may_exit}
        return keep_highest(row, trace.scratch.pop(self).on(layout), counts, layer, trace)
