"""FastV (arXiv:2403.06764): from layer K on, only the visual tokens that the last token attended to most."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dyvte.decoding.packed import Layout, PackedRow
from dyvte.decoding.trace import ExitTrace
from dyvte.gates.states import state_index
from dyvte.reduction.scores import check_share, keep_highest, kept_count, observe_attention


@dataclass(frozen=True)
class FastV:
    """Layers 0..k-1 see all visual tokens, layers k.. the share ``1 - r`` of them.

    They are ranked by the attention that the last prompt token gives them in layer ``k - 1``, averaged over heads.
    Only that query's scores are computed, beside the attention kernel, and counted in the trace. As in the paper's
    code tokens keep order and position; several images of a sample are ranked together. The code's K = 0 (random
    tokens) is :class:`~dyvte.reduction.random_drop.RandomDrop`.

    Args:
        k: the first layer without them, 1 or more.
        r: share of visual tokens that leaves, in [0, 1].

    Raises:
        ValueError: on other values.
    """

    k: int = 2
    r: float = 0.5
    ignores_text = True

    def __post_init__(self) -> None:
        check_share("FastV's r", self.r)

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Raise ValueError when no layer would be left to gain from."""
        if not 1 <= self.k < num_layers:
            raise ValueError(f"FastV's k must be one of 1..{num_layers - 1}, got {self.k}")

    def observe(self, layer: int, query: Tensor, key: Tensor, layout: Layout, trace: ExitTrace) -> None:
        """Note the last token's attention in layer ``k - 1``."""
        if layer == self.k - 1 and self.r > 0:
            trace.scratch[self] = observe_attention(layer, query, key, layout, trace)

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """Keep the best visual tokens of each sample after layer ``k - 1``."""
        if layer != self.k - 1 or self.r == 0:
            return row
        layout = row.layout
        counts = {s: kept_count(layout.visual[s], 1 - self.r) for s in state_index(layout).segments}
        return keep_highest(row, trace.scratch.pop(self).on(layout), counts, layer, trace)
