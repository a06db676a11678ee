"""Random dropping of visual tokens, a baseline of methods that choose them.

Registered in ``dyvte/methods.py``, its fields as settings. Another draw changes the results of existing records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dyvte.decoding.packed import VISUAL, PackedRow
from dyvte.decoding.policy import Policy
from dyvte.decoding.trace import ExitTrace
from dyvte.reduction.scores import check_share, keep_highest, kept_count, visual_index


@dataclass(frozen=True)
class RandomDrop(Policy):
    """Layers 0..k-1 see all visual tokens, layers k.. a random share ``1 - r`` of them.

    The draw depends on ``seed`` and on the places of the sample's first visual and last prompt token alone, so that
    it is the same in any batch. Two prompts of the same shape lose the same tokens.

    Args:
        k: the first layer without the dropped tokens; 0: they never enter the decoder.
        r: share of visual tokens that is dropped, in [0, 1]; below 1 where ``k`` is 0.
        seed: of the draw.
    """

    k: int = 0
    r: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("RandomDrop's r", self.r, below_one=self.k == 0)

    def check(self, num_layers: int, hidden_size: int) -> None:
        if not 0 <= self.k < num_layers:
            raise ValueError(f"RandomDrop's k must be one of 0..{num_layers - 1}, got {self.k}")

    def enter(self, row: PackedRow, trace: ExitTrace) -> PackedRow:
        return self._drop(-1, row, trace) if self.k == 0 else row

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        return self._drop(layer, row, trace) if layer == self.k - 1 else row

    def _drop(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        layout = row.layout
        if self.r == 0:
            return row
        scores = torch.zeros(len(layout.kinds), device=row.hidden.device)
        for sequence in layout.may_exit:
            visual = visual_index(layout, sequence)
            images = np.flatnonzero((layout.kinds == VISUAL) & (layout.owners == sequence))
            first, last = layout.places[[images[0], layout.last_text[sequence]]].tolist()
            scores[visual] = self._draw(len(visual), first, last).to(scores)
        counts = {s: kept_count(layout.visual[s], 1 - self.r) for s in layout.may_exit}
        return keep_highest(row, scores, counts, layer, trace)

    def _draw(self, count: int, first: int, last: int) -> Tensor:
        """(count,) random scores, by the places of the first visual and the last prompt token."""
        generator = torch.Generator().manual_seed((self.seed * 8191 + first) * 131071 + last)
        return torch.randperm(count, generator=generator)
