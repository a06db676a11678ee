"""PyramidDrop (arXiv:2410.17247): fewer visual tokens after each stage of layers.

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
class PyramidDrop(Policy):
    """The layers in ``stages`` stages of equal depth; after stage s the share ``ratio ** s`` of the prompt's visual
    tokens stays. With 32 layers and the paper's settings: 288, 144 and 72 of 576 after layers 7, 15 and 23.

    Tokens are ranked by the head-mean attention of the last prompt token (the paper's last instruction token), which
    is computed for this one query and counted in the trace. Two differences from the paper's code: it ranks by
    queries and keys of the layer *after* the stage, here by those of the stage's last layer, which are computed
    anyway; and it renumbers positions, here they stay.

    Args:
        stages: number of stages, 2 or more.
        ratio: share of visual tokens that each stage passes on, in [0, 1].
    """

    stages: int = 4
    ratio: float = 0.5

    def __post_init__(self) -> None:
        check_share("PyramidDrop's ratio", self.ratio)
        if self.stages < 2:
            raise ValueError(f"PyramidDrop's stages must be 2 or more, got {self.stages}")

    def check(self, num_layers: int, hidden_size: int) -> None:
        if self.stages > num_layers:
            raise ValueError(f"PyramidDrop's {self.stages} stages do not fit {num_layers} layers")

    def layers(self, num_layers: int) -> list[int]:
        """The last layer (zero-based) of each stage but the last."""
        return [num_layers * stage // self.stages - 1 for stage in range(1, self.stages)]

    def observes(self, layer: int, layout: Layout) -> bool:
        """All layers while there are visual tokens: which layers end a stage is known in :meth:`observe` alone."""
        return self.ratio < 1 and any(layout.visual)

    def observe(self, layer: int, inputs: AttentionInputs, trace: ExitTrace) -> None:
        if layer in self.layers(trace.num_layers):
            trace.scratch[self] = observe_attention(layer, inputs, trace)

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        ends, layout = self.layers(trace.num_layers), row.layout
        if self.ratio == 1 or layer not in ends:
            return row
        share = self.ratio ** (ends.index(layer) + 1)
        counts = {
            sequence: kept_count(trace.visual_tokens[layout.samples[sequence]], share)
            for sequence in layout.may_exit
        }
        observed = trace.scratch.pop(self, None)  # None where no visual tokens are left
        return row if observed is None else keep_highest(row, observed.on(layout), counts, layer, trace)
