"""What methods that choose visual tokens share: the last text token's attention, and keeping the best of a sample.

The samples that may lose visual tokens are those of :func:`dyvte.gates.states.state_index`: they have some, and
prompt text after the last of them. A prompt that ends in an image keeps all of it.

Shapes: T tokens of the row, G segments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dyvte.decoding.attention_weights import causal_logits
from dyvte.decoding.packed import VISUAL, Layout, PackedRow, select_tokens
from dyvte.decoding.trace import ExitTrace
from dyvte.gates.states import state_index


@dataclass(frozen=True, eq=False)
class Observed:
    """One value (of any shape) for each token of a layout, (T, ...)."""

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


def last_text_attention(query: Tensor, key: Tensor, layout: Layout) -> Iterator[tuple[int, slice, Tensor]]:
    """Attention of each sample's last prompt token, computed for this one query only.

    Args:
        query: (1, heads, T, head_dim), key: (1, kv_heads, T, head_dim), both after rotary embedding. Scores are
            scaled by the square root of ``head_dim``, as in Llama.

    Yields:
        per segment that may lose visual tokens: the segment, the tokens up to its last prompt token, and the
        weights over them, (heads, n) float32.
    """
    index = state_index(layout)
    last_text = index.last["text"]
    for at, (segment, last) in enumerate(zip(index.segments, last_text.tolist(), strict=True)):
        seen = slice(layout.starts[segment], last + 1)
        logits = causal_logits(query, key, last_text[at : at + 1], seen.start, seen.stop)[:, 0]
        if layout.sizes is not None:
            logits = logits + layout.sizes[seen].log()
        yield segment, seen, logits.softmax(-1)


def observe_attention(layer: int, query: Tensor, key: Tensor, layout: Layout, trace: ExitTrace) -> Observed:
    """Head-mean attention of the last prompt token to each token of its sample, zeros elsewhere, (T,) float32.

    Its FLOPs, ``2 * tokens * query width`` a sample, are noted in the trace.
    """
    values = torch.zeros(len(layout.positions), dtype=torch.float32, device=query.device)
    for segment, seen, weights in last_text_attention(query, key, layout):
        values[seen] = weights.mean(0)
        trace.record_scores(layer, layout.samples[segment], 2 * weights.numel() * query.shape[3])
    return Observed(layout, values)


def kept_count(tokens: int, share: float) -> int:
    """``tokens * share`` rounded down, but at least one token where the share is not zero."""
    return max(int(tokens * share + 1e-6), 1) if share > 0 else 0


def visual_index(layout: Layout, segment: int) -> Tensor:
    """(n,) long, the visual tokens of a segment as indices into the row."""
    return layout.to_device(np.flatnonzero((layout.kinds == VISUAL) & (layout.segments == segment)))


def keep_highest(
    row: PackedRow, scores: Tensor, counts: Mapping[int, int], layer: int, trace: ExitTrace
) -> PackedRow:
    """Keep the visual tokens with the highest scores, in their order; of equal scores the first.

    Args:
        scores: (T,).
        counts: how many visual tokens each segment keeps; all in segments that are not named.
    """
    layout = row.layout
    counts = {segment: count for segment, count in counts.items() if count < layout.visual[segment]}
    keep = torch.ones_like(layout.is_visual)
    for segment, count in counts.items():
        visual = visual_index(layout, segment)
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
