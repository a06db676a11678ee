"""For methods that choose visual tokens: attention of the last prompt token, and keeping the highest-ranked tokens.

Called by the policies of this package. Only samples in ``Layout.may_exit`` may lose visual tokens, and FLOPs of what
is computed beside the model must be recorded in the trace.

Shapes: T tokens of the row, G sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dyvte.decoding.attention.interface import AttentionInputs
from dyvte.decoding.attention.logits import causal_logits
from dyvte.decoding.packed import VISUAL, Layout, PackedRow, select_tokens
from dyvte.decoding.trace import ExitTrace


@dataclass(frozen=True, eq=False)
class Observed:
    """Values of the tokens of a layout, (T, ...)."""

    layout: Layout
    values: Tensor

    def on(self, layout: Layout) -> Tensor:
        """The values of the tokens that are left in ``layout``, after edits by other policies."""
        if layout is self.layout:
            return self.values
        slots = self.layout.slots
        by_slot = self.values.new_zeros(int(slots.max()) + 1, *self.values.shape[1:])
        by_slot[slots] = self.values
        return by_slot[layout.slots]


def last_text_attention(inputs: AttentionInputs) -> Iterator[tuple[int, slice, Tensor]]:
    """Attention of each sample's last prompt token, computed for this one query only.

    Yields:
        per sequence that may lose visual tokens: the sequence, the tokens up to its last prompt token, and the
        weights over them, (heads, n) float32.
    """
    layout = inputs.layout
    for sequence in layout.may_exit:
        seen = slice(layout.starts[sequence], int(layout.last_text[sequence]) + 1)
        query = layout.to_device(layout.last_text[sequence : sequence + 1])
        yield sequence, seen, causal_logits(inputs, query, seen.start, seen.stop)[:, 0].softmax(-1)


def observe_attention(layer: int, inputs: AttentionInputs, trace: ExitTrace) -> Observed:
    """Head-mean attention of the last prompt token to each token of its sample, zeros elsewhere, (T,) float32.

    Its FLOPs, ``2 * tokens * query width`` a sample, are noted in the trace.
    """
    layout, query = inputs.layout, inputs.query
    values = torch.zeros(len(layout.kinds), dtype=torch.float32, device=query.device)
    for sequence, seen, weights in last_text_attention(inputs):
        values[seen] = weights.mean(0)
        trace.record_scores(layer, layout.samples[sequence], 2 * weights.numel() * query.shape[3])
    return Observed(layout, values)


def kept_count(tokens: int, share: float) -> int:
    """``tokens * share`` rounded down (1e-6 makes up for rounding errors), but at least 1 unless ``share`` is 0."""
    return max(int(tokens * share + 1e-6), 1) if share > 0 else 0


def visual_index(layout: Layout, sequence: int) -> Tensor:
    """(n,) long, the visual tokens of a sequence as indices into the row."""
    return layout.to_device(np.flatnonzero((layout.kinds == VISUAL) & (layout.owners == sequence)))


def keep_highest(
    row: PackedRow, scores: Tensor, counts: Mapping[int, int], layer: int, trace: ExitTrace
) -> PackedRow:
    """Keep the visual tokens with the highest scores, in their order; of equal scores the first.

    Args:
        scores: (T,).
        counts: how many visual tokens each sequence keeps; all in sequences that are not named.
    """
    layout = row.layout
    counts = {sequence: count for sequence, count in counts.items() if count < layout.visual[sequence]}
    keep = torch.ones_like(layout.is_visual)
    for sequence, count in counts.items():
        visual = visual_index(layout, sequence)
        keep[visual] = False
        keep[visual[scores[visual].argsort(descending=True, stable=True)[:count]]] = True
    return keep_tokens(row, keep, layer, trace) if counts else row


def keep_tokens(row: PackedRow, keep: Tensor, layer: int, trace: ExitTrace) -> PackedRow:
    """Keep the tokens that ``keep`` (T,) bool names; samples without visual tokens left exit after ``layer``."""
    kept = select_tokens(row, keep)
    counts = zip(row.layout.samples, row.layout.visual, kept.layout.visual, strict=True)
    trace.record_exit(layer, [sample for sample, before, after in counts if before and not after])
    return kept


def check_share(name: str, value: float, *, below_one: bool = False) -> None:
    """Raise ValueError unless a share lies in [0, 1], or in [0, 1)."""
    if not 0 <= value <= 1 or (below_one and value == 1):
        raise ValueError(f"{name} must lie in [0, 1{')' if below_one else ']'}, got {value}")
