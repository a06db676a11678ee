"""A batch as one row of tokens without padding.

The row is cut into segments, one per sample (more while labels are made). Dropping or forking tokens is one
``index_select`` over the row; positions are kept as they were, so rotary embeddings never change.

Shapes: B samples, S padded columns, T tokens in the row, G segments, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """Who is who in a packed row. Immutable: an edit of the row makes a new layout.

    Attributes:
        positions: (T,) long, the tokens' positions in their prompts; never renumbered.
        is_visual: (T,) bool.
        is_answer: (T,) bool, True on teacher-forced answer tokens, which gates must not see.
        slots: (T,) long, where each token came from: ``sample * S + column`` of the padded batch.
        lengths: (G,) tokens per segment, on the host.
        visual: (G,) visual tokens per segment, on the host.
        samples: (G,) the sample that each segment belongs to, on the host.
        forked_at: (G,) the layer after which a segment was copied without its image; None for the samples' own.
        sizes: (T,) float32, of how many tokens each is the merged mean; None while nothing was merged. Attention adds
            their logarithm to the scores of keys.
    """

    positions: Tensor
    is_visual: Tensor
    is_answer: Tensor
    slots: Tensor
    lengths: tuple[int, ...]
    visual: tuple[int, ...]
    samples: tuple[int, ...]
    forked_at: tuple[int | None, ...]
    sizes: Tensor | None = None

    @classmethod
    def of_single_tokens(cls, positions: Tensor) -> Layout:
        """One text token per sample, as in a decoding step; ``positions`` (B,)."""
        ones = (1,) * len(positions)
        nothing = torch.zeros_like(positions, dtype=torch.bool)
        slots = torch.arange(len(positions), device=positions.device)
        samples = tuple(range(len(positions)))
        return cls(positions, nothing, nothing, slots, ones, (0,) * len(ones), samples, (None,) * len(ones))

    def with_positions(self, positions: Tensor) -> Layout:
        """The same tokens at other positions (T,)."""
        return replace(self, positions=positions)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """(G,) where each segment begins in the row."""
        starts, at = [], 0
        for length in self.lengths:
            starts.append(at)
            at += length
        return tuple(starts)

    @cached_property
    def segment_ids(self) -> Tensor:
        """(T,) long, the segment of each token."""
        device = self.positions.device
        lengths = torch.tensor(self.lengths, device=device)
        return torch.repeat_interleave(
            torch.arange(len(self.lengths), device=device), lengths, output_size=len(self.positions)
        )

    @cached_property
    def last_index(self) -> Tensor:
        """(G,) long, index of each segment's last token."""
        ends = [start + length - 1 for start, length in zip(self.starts, self.lengths, strict=True)]
        return torch.tensor(ends, device=self.positions.device)

    @cached_property
    def can_exit(self) -> tuple[bool, ...]:
        """(G,) whether a segment's visual tokens may leave: there are some, and the last token is not one.

        A prompt that ends in an image predicts its answer from a visual token, which therefore has to stay.
        """
        ends_in_image = self.is_visual[self.last_index].tolist()
        return tuple(bool(count) and not end for count, end in zip(self.visual, ends_in_image, strict=True))

    @cached_property
    def runs(self) -> tuple[tuple[int, int, int], ...]:
        """Neighbouring segments of equal length: (where the first begins, length of each, how many)."""
        runs, at = [], 0
        for length, members in groupby(self.lengths):
            runs.append((at, length, len(list(members))))
            at += length * runs[-1][2]
        return tuple(runs)

    def select(self, index: Tensor, **host: tuple) -> Layout:
        """The layout of the tokens at ``index`` (T',); ``host`` replaces the per-segment fields that change."""
        return replace(
            self,
            positions=self.positions[index],
            is_visual=self.is_visual[index],
            is_answer=self.is_answer[index],
            slots=self.slots[index],
            sizes=None if self.sizes is None else self.sizes[index],
            **host,
        )


@dataclass(frozen=True, eq=False)
class PackedRow:
    """States of a packed batch: ``hidden`` (1, T, D) and their :class:`Layout`."""

    hidden: Tensor
    layout: Layout

    def select(self, index: Tensor, **host: tuple) -> PackedRow:
        """The row made of the tokens at ``index``; see :meth:`Layout.select`."""
        return PackedRow(self.hidden.index_select(1, index), self.layout.select(index, **host))


def pack(
    inputs_embeds: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    visual_mask: Tensor | None = None,
    answer_mask: Tensor | None = None,
) -> PackedRow:
    """Padded batch -> packed row.

    Args:
        inputs_embeds: (B, S, D).
        attention_mask: (B, S), nonzero on real tokens; all by default. Padding may be anywhere.
        position_ids: (B, S) or (1, S); by default 0, 1, ... over the real tokens of each sample.
        visual_mask: (B, S) bool, True on visual tokens; none by default.
        answer_mask: (B, S) bool, True on teacher-forced answer tokens; none by default.

    Raises:
        ValueError: when a mask is not (B, S), or a sample has no real token.
    """
    batch, columns, _ = inputs_embeds.shape
    device = inputs_embeds.device
    keep = _as_mask(attention_mask, "attention_mask", batch, columns, device, default=True)
    visual = _as_mask(visual_mask, "visual_mask", batch, columns, device, default=False) & keep
    answer = _as_mask(answer_mask, "answer_mask", batch, columns, device, default=False) & keep
    lengths, visual_counts = torch.stack([keep.sum(1), visual.sum(1)]).tolist()
    if min(lengths) == 0:
        raise ValueError(
            f"sample {lengths.index(0)} of the batch holds no token: every prompt needs at least one"
        )
    if position_ids is None:
        position_ids = keep.long().cumsum(1) - 1
    if sum(lengths) == batch * columns:
        slots = torch.arange(batch * columns, device=device)
    else:
        slots = keep.flatten().nonzero().flatten()
    layout = Layout(
        positions=position_ids.expand(batch, columns).flatten()[slots],
        is_visual=visual.flatten()[slots],
        is_answer=answer.flatten()[slots],
        slots=slots,
        lengths=tuple(lengths),
        visual=tuple(visual_counts),
        samples=tuple(range(batch)),
        forked_at=(None,) * batch,
    )
    return PackedRow(inputs_embeds.flatten(0, 1)[slots][None], layout)


def _as_mask(mask, name: str, batch: int, columns: int, device, *, default: bool) -> Tensor:
    if mask is None:
        return torch.full((batch, columns), default, device=device)
    if tuple(mask.shape) != (batch, columns):
        raise ValueError(f"{name} must have shape {(batch, columns)}, got {tuple(mask.shape)}")
    return mask.to(device).bool()


def unpack(row: PackedRow, batch: int, columns: int) -> Tensor:
    """Packed row -> (B, S, D), tokens back in their columns, zeros at padding and at tokens that left.

    Where the last column of a sample is padding (right padding) it repeats the sample's last state, so that
    ``[:, -1]`` predicts the next token under either padding: that is what ``generate`` reads.
    """
    hidden, layout = row.hidden[0], row.layout
    if columns == 1 and len(hidden) == batch:  # a decoding step
        return hidden[:, None]
    out = hidden.new_zeros(batch * columns, hidden.shape[-1])
    out = out.index_copy(0, layout.slots, hidden).view(batch, columns, -1)
    samples = torch.tensor(layout.samples, device=hidden.device)
    last_column = out[:, -1].index_copy(0, samples, hidden[layout.last_index])
    return torch.cat([out[:, :-1], last_column[:, None]], dim=1)


def drop_visual(row: PackedRow, segments: Sequence[bool]) -> PackedRow:
    """The row without the visual tokens of the chosen segments (G flags)."""
    layout = row.layout
    chosen = torch.tensor(segments, device=layout.is_visual.device)
    index = (~(layout.is_visual & chosen[layout.segment_ids])).nonzero().flatten()
    lengths, visual = [], []
    for gone, length, count in zip(segments, layout.lengths, layout.visual, strict=True):
        lengths.append(length - count if gone else length)
        visual.append(0 if gone else count)
    return row.select(index, lengths=tuple(lengths), visual=tuple(visual))


def select_tokens(row: PackedRow, keep: Tensor) -> PackedRow:
    """The row with the tokens that ``keep`` (T,) bool names, in their order and at their positions."""
    layout = row.layout
    kept_per_segment = torch.zeros(2, len(layout.lengths), dtype=torch.long, device=keep.device)
    counted = torch.stack([keep, keep & layout.is_visual]).long()
    lengths, visual = kept_per_segment.index_add_(1, layout.segment_ids, counted).tolist()
    return row.select(keep.nonzero().flatten(), lengths=tuple(lengths), visual=tuple(visual))


def merge_tokens(row: PackedRow, into: Tensor, *, track_sizes: bool) -> PackedRow:
    """The row in which tokens have joined others of their segment, as means over all tokens that they stand for.

    Args:
        into: (T,) long, the token that each token joins; its own index for one that stays. A token that is joined
            must stay, and keeps its position.
        track_sizes: whether attention is to count a merged token as often as the tokens it stands for.
    """
    layout, hidden = row.layout, row.hidden[0]
    stay = into == torch.arange(len(into), device=into.device)
    sizes = hidden.new_ones(len(into), dtype=torch.float32) if layout.sizes is None else layout.sizes
    totals = torch.zeros_like(sizes).index_add_(0, into, sizes)
    joined = into[~stay].unique()
    sums = hidden.new_zeros(hidden.shape, dtype=torch.float32)
    sums.index_add_(0, into, hidden.float() * sizes[:, None])
    means = (sums[joined] / totals[joined, None]).to(hidden.dtype)
    merged = PackedRow(hidden.index_copy(0, joined, means)[None], layout)
    if track_sizes:
        merged = PackedRow(merged.hidden, replace(layout, sizes=totals))
    return select_tokens(merged, stay)


def fork(row: PackedRow, layer: int) -> PackedRow:
    """The row plus, for each sample that still has its image, a copy of it without the image.

    The copies stand at the end of the row, in the order of the samples, with ``forked_at = layer``.
    """
    layout = row.layout
    copied = [
        segment
        for segment, (count, origin) in enumerate(zip(layout.visual, layout.forked_at, strict=True))
        if count and origin is None
    ]
    if not copied:
        return row
    chosen = torch.zeros(len(layout.lengths), dtype=torch.bool, device=layout.is_visual.device)
    chosen[copied] = True
    text = (~layout.is_visual & chosen[layout.segment_ids]).nonzero().flatten()
    index = torch.cat([torch.arange(len(layout.is_visual), device=text.device), text])
    return row.select(
        index,
        lengths=layout.lengths + tuple(layout.lengths[g] - layout.visual[g] for g in copied),
        visual=layout.visual + (0,) * len(copied),
        samples=layout.samples + tuple(layout.samples[g] for g in copied),
        forked_at=layout.forked_at + (layer,) * len(copied),
    )
