"""Average pooling of the grid of visual tokens before the first layer.

Registered in ``dyvte/methods.py``, its fields as settings; must agree with ``tests/reduction/plain.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dyvte.decoding.packed import PackedRow, merge_tokens
from dyvte.decoding.policy import Policy
from dyvte.decoding.trace import ExitTrace
from dyvte.reduction.scores import visual_index


@dataclass(frozen=True)
class Pooling(Policy):
    """Each block of ``s`` x ``s`` visual tokens of an image becomes their mean, before layer 0.

    The mean takes the position of its block's first token (top left): order stays, positions have gaps. Blocks at the
    right and lower border are cut where ``s`` does not divide the grid. Vision tower and projector run, and are
    counted, in full. Pooling computes no matrix product, so it adds no FLOPs.

    Args:
        s: side of a block; 1 changes nothing.
        grid: side of an image's grid, 24 in LLaVA-1.5. None: each run of adjacent visual tokens is one square image.

    Raises:
        ValueError: when ``s`` or ``grid`` is not positive; in a prefill, when visual tokens do not form such grids
            (as the tiles of LLaVA-1.6 with row ends).
    """

    s: int = 2
    grid: int | None = None

    def __post_init__(self) -> None:
        if self.s < 1 or (self.grid is not None and self.grid < 1):
            raise ValueError(f"Pooling's s and grid must be positive, got s={self.s}, grid={self.grid}")

    def enter(self, row: PackedRow, trace: ExitTrace) -> PackedRow:
        if self.s == 1:
            return row
        layout = row.layout
        into = torch.arange(len(layout.kinds), device=layout.positions.device)
        for sequence in layout.may_exit:
            visual = visual_index(layout, sequence)
            ends = (visual.diff() != 1).nonzero().flatten() + 1
            for image in visual.tensor_split(ends.cpu()):
                into[image] = image[self._first_of_block(len(image)).to(image.device)]
        return merge_tokens(row, into, track_sizes=False)

    def _first_of_block(self, tokens: int) -> torch.Tensor:
        """(tokens,) long: for each token of one or more grids, the first token of its block."""
        side = math.isqrt(tokens) if self.grid is None else self.grid
        if tokens % side**2 or (self.grid is None and tokens != side**2):
            raise ValueError(
                f"{tokens} neighbouring visual tokens are no {'square' if self.grid is None else f'{side} x {side}'} "
                "grid: set Pooling's grid to the side of one image's"
            )
        start = torch.arange(side) // self.s * self.s
        block = (start[:, None] * side + start).flatten()
        images = torch.arange(tokens // side**2) * side**2
        return (images[:, None] + block).flatten()
