"""A batch as one row of tokens without padding.

The row is cut into sequences, one per sample (more while labels are made). Dropping or forking tokens is one
``index_select`` over the row; positions are kept as they were, so rotary embeddings never change.

Which token is what is known on the host: packing reads the masks once, and from then on no edit of the row has to
wait for the device.

Shapes: B samples, S padded columns, T tokens in the row, G sequences, D hidden size.

Called from most of the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TEXT, VISUAL, ANSWER = range(3)


def to_device(array: NDArray[Any] | Sequence[int], device: torch.device) -> Tensor:
    """The array on a device. The host does not wait for it: a copy from pinned memory is ordered on the device."""
    host = torch.from_numpy(np.ascontiguousarray(array))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


@dataclass(frozen=True, eq=False)
class Layout:
    """Per-token metadata of a packed batch (below: row). Immutable: an edit of the row makes a new layout.

    Attributes:
        positions: (T,) long, the tokens' positions in their prompts, or (A, T) on several axes (M-RoPE); never
            renumbered.
        kinds: (T,) int8, on the host: ``TEXT`` of the prompt, ``VISUAL``, or ``ANSWER`` for teacher-forced answers,
            which gates must not see.
        origins: (T,) int64, on the host, where each token came from: ``sample * S + column`` of the padded batch.
        owners: (T,) int64, ascending, on the host: the sequence of each token.
        samples: (G,) the sample that each sequence belongs to, on the host.
        forked_at: (G,) the layer after which a sequence was copied without its image; None for the samples' own.
        places: (T,) int64, on the host: where each token stood in its unpadded prompt. Windows count in places.
        blocks: (T,) int64, on the host: the block of tokens that see each other in both directions, -1 for none; None
            where no token has one.
        extras: what some layers get beside the states, by slot; see :meth:`dyvte.families.stack.Stack.extras`.
        sizes: (T,) float32, of how many tokens each is the merged mean; None while nothing was merged. Attention adds
            their logarithm to the scores of keys.
    """

    positions: Tensor
    kinds: NDArray[np.int8]
    origins: NDArray[np.int64]
    owners: NDArray[np.int64]
    samples: tuple[int, ...]
    forked_at: tuple[int | None, ...]
    places: NDArray[np.int64]
    blocks: NDArray[np.int64] | None = None
    sizes: Tensor | None = None
    extras: Any = None

    @classmethod
    def of_single_tokens(cls, positions: Tensor, places: Sequence[int] | None = None) -> Layout:
        """One text token per sample, as in a decoding step; ``positions`` (B,), at ``places`` (B,) of its sample."""
        layout = cls.of_text(positions, 1)
        return layout if places is None else replace(layout, places=np.array(places, np.int64))

    @classmethod
    def of_text(cls, positions: Tensor, length: int) -> Layout:
        """Equally many text tokens per sample; ``positions`` (B * length,)."""
        tokens, samples = np.arange(len(positions)), len(positions) // length
        return cls(
            positions,
            np.zeros(len(tokens), np.int8),
            tokens,
            tokens // length,
            tuple(range(samples)),
            (None,) * samples,
            tokens % length,
        )

    @cached_property
    def extent(self) -> int:
        """Places in the longest prompt, at least: no token is further from another of its sequence."""
        return int(self.places.max()) + 1

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """(G,) tokens per sequence."""
        return tuple(np.bincount(self.owners, minlength=len(self.samples)).tolist())

    @cached_property
    def visual(self) -> tuple[int, ...]:
        """(G,) visual tokens per sequence."""
        owners = self.owners[self.kinds == VISUAL]
        return tuple(np.bincount(owners, minlength=len(self.samples)).tolist())

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """(G,) where each sequence begins in the row."""
        return tuple(np.searchsorted(self.owners, range(len(self.samples))).tolist())

    def last_of(self, tokens: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(G,) index of each sequence's last token among the chosen ones (T,), -1 where it has none."""
        last = np.full(len(self.samples), -1)
        at = np.flatnonzero(tokens)
        last[self.owners[at]] = at  # of several values the last one stays
        return last

    @cached_property
    def last_visual(self) -> NDArray[np.int64]:
        """(G,) index of each sequence's last visual token, -1 where it has none."""
        return self.last_of(self.kinds == VISUAL)

    @cached_property
    def text_after_image(self) -> NDArray[np.bool_]:
        """(T,) prompt text that follows the last visual token of its sequence; all text where there is none."""
        return (self.kinds == TEXT) & (np.arange(len(self.owners)) > self.last_visual[self.owners])

    @cached_property
    def last_text(self) -> NDArray[np.int64]:
        """(G,) index of the last token of :attr:`text_after_image`, -1 where there is none."""
        return self.last_of(self.text_after_image)

    @cached_property
    def may_exit(self) -> tuple[int, ...]:
        """The sequences that may lose visual tokens: they have some, and prompt text after the last of them.

        A prompt that ends in an image predicts its answer from a visual token, which therefore has to stay.
        """
        return tuple(np.flatnonzero((self.last_visual >= 0) & (self.last_text >= 0)).tolist())

    @cached_property
    def runs(self) -> tuple[tuple[int, int, int], ...]:
        """Neighbouring sequences of equal length: (where the first begins, length of each, how many)."""
        runs, at = [], 0
        for length, members in groupby(self.lengths):
            runs.append((at, length, len(list(members))))
            at += length * runs[-1][2]
        return tuple(runs)

    # the same on the row's device, for those who need it there

    @cached_property
    def bias(self) -> Tensor | None:
        """(T,) float32, what attention adds to each key's scores: a merged token counts once per token in it."""
        return None if self.sizes is None else self.sizes.log()

    def to(self, device: torch.device) -> Layout:
        """The layout for states on another device."""
        if self.positions.device == device:
            return self
        sizes = None if self.sizes is None else self.sizes.to(device)
        return replace(self, positions=self.positions.to(device), sizes=sizes)

    def to_device(self, array: NDArray[Any]) -> Tensor:
        """The array on the row's device."""
        return to_device(array, self.positions.device)

    @cached_property
    def is_visual(self) -> Tensor:
        """(T,) bool."""
        return self.to_device(self.kinds == VISUAL)

    @cached_property
    def place_ids(self) -> Tensor:
        """(T,) long, :attr:`places`."""
        return self.to_device(self.places)

    @cached_property
    def block_ids(self) -> Tensor | None:
        """(T,) long, :attr:`blocks`; None where none is left."""
        return None if self.blocks is None or not (self.blocks >= 0).any() else self.to_device(self.blocks)

    @cached_property
    def slots(self) -> Tensor:
        """(T,) long, :attr:`origins`."""
        return self.to_device(self.origins)

    @cached_property
    def owner_ids(self) -> Tensor:
        """(T,) long, :attr:`owners`."""
        return self.to_device(self.owners)

    @cached_property
    def last_index(self) -> Tensor:
        """(G,) long, index of each sequence's last token."""
        ends = np.array(self.starts) + np.array(self.lengths) - 1
        return self.to_device(ends)

    @cached_property
    def offsets(self) -> Tensor:
        """(G + 1,) int32, where each sequence begins, and where the last one ends."""
        return self.to_device(np.array([*self.starts, len(self.owners)], np.int32))

    def select(
        self,
        index: NDArray[np.int64],
        on_device: Tensor,
        owners: NDArray[np.int64] | None = None,
        copied: Sequence[tuple[int, int]] = (),
    ) -> Layout:
        """The layout of the tokens at ``index`` (T',), given on the host and on the row's device.

        Args:
            owners: (T',), where these are not those of the tokens any more.
            copied: (sample, layer after which it was copied) of sequences that are added.
        """
        samples, layers = zip(*copied, strict=True) if copied else ((), ())
        return replace(
            self,
            positions=self.positions.index_select(-1, on_device),
            places=self.places[index],
            blocks=None if self.blocks is None else self.blocks[index],
            kinds=self.kinds[index],
            origins=self.origins[index],
            owners=self.owners[index] if owners is None else owners,
            samples=self.samples + samples,
            forked_at=self.forked_at + layers,
            sizes=None if self.sizes is None else self.sizes.index_select(0, on_device),
        )


@dataclass(frozen=True, eq=False)
class PackedRow:
    """States of a packed batch: ``hidden`` (1, T, D) and their :class:`Layout`."""

    hidden: Tensor
    layout: Layout

    def to(self, device: torch.device) -> PackedRow:
        """The row on a device."""
        layout = self.layout.to(device)
        return self if layout is self.layout else PackedRow(self.hidden.to(device), layout)

    def select(
        self,
        index: NDArray[np.int64],
        owners: NDArray[np.int64] | None = None,
        copied: Sequence[tuple[int, int]] = (),
    ) -> PackedRow:
        """The row made of the tokens at ``index`` (T',); see :meth:`Layout.select`."""
        on_device = self.layout.to_device(index)
        layout = self.layout.select(index, on_device, owners, copied)
        return PackedRow(self.hidden.index_select(1, on_device), layout)


def pack(
    inputs_embeds: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    visual_mask: Tensor | None = None,
    answer_mask: Tensor | None = None,
    blocks: Tensor | None = None,
    extras: Any = None,
) -> PackedRow:
    """Padded batch -> packed row.

    Args:
        inputs_embeds: (B, S, D).
        attention_mask: (B, S), nonzero on real tokens; all by default. Padding may be anywhere.
        position_ids: (B, S), (1, S), or (A, B, S) on several axes; by default 0, 1, ... over the real tokens of each
            sample.
        visual_mask: (B, S) bool, True on visual tokens; none by default.
        answer_mask: (B, S) bool, True on teacher-forced answer tokens; none by default.
        blocks: (B, S) long, see :class:`Layout`; none by default.
        extras: see :class:`Layout`.

    Raises:
        ValueError: when a mask is not (B, S), or a sample has no real token.
    """
    batch, columns, _ = inputs_embeds.shape
    device = inputs_embeds.device
    keep = _as_mask(attention_mask, "attention_mask", batch, columns, device, default=True)
    visual = _as_mask(visual_mask, "visual_mask", batch, columns, device, default=False) & keep
    answer = _as_mask(answer_mask, "answer_mask", batch, columns, device, default=False) & keep
    real, is_visual, is_answer = torch.stack([keep, visual, answer]).cpu().numpy()
    empty = np.flatnonzero(~real.any(1))
    if len(empty):
        raise ValueError(f"sample {empty[0]} of the batch holds no token: every prompt needs at least one")
    if position_ids is None:
        position_ids = keep.long().cumsum(1) - 1
    origins = np.flatnonzero(real)
    positions = position_ids.expand(*position_ids.shape[:-2], batch, columns).flatten(-2)
    hidden = inputs_embeds.flatten(0, 1)
    if len(origins) < batch * columns:
        index = to_device(origins, device)
        positions, hidden = positions.index_select(-1, index), hidden.index_select(0, index)
    layout = Layout(
        positions=positions,
        kinds=(VISUAL * is_visual + ANSWER * (is_answer & ~is_visual)).astype(np.int8).ravel()[origins],
        origins=origins,
        owners=origins // columns,
        samples=tuple(range(batch)),
        forked_at=(None,) * batch,
        places=(real.cumsum(1) - 1).ravel()[origins],
        blocks=None if blocks is None else blocks.cpu().numpy().ravel()[origins].astype(np.int64),
        extras=extras,
    )
    return PackedRow(hidden[None], layout)


def _as_mask(
    mask: Tensor | None, name: str, batch: int, columns: int, device: torch.device, *, default: bool
) -> Tensor:
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
    samples = to_device(layout.samples, hidden.device)
    last_column = out[:, -1].index_copy(0, samples, hidden[layout.last_index])
    return torch.cat([out[:, :-1], last_column[:, None]], dim=1)


def drop_visual(row: PackedRow, sequences: Sequence[int]) -> PackedRow:
    """The row without the visual tokens of the chosen sequences."""
    layout = row.layout
    leaving = (layout.kinds == VISUAL) & np.isin(layout.owners, sequences)
    return row.select(np.flatnonzero(~leaving))


def select_tokens(row: PackedRow, keep: Tensor) -> PackedRow:
    """The row with the tokens that ``keep`` (T,) bool names, in their order and at their positions."""
    return row.select(np.flatnonzero(keep.cpu().numpy()))


def merge_tokens(row: PackedRow, into: Tensor, *, track_sizes: bool) -> PackedRow:
    """The row in which tokens have joined others of their sequence, as means over all tokens that they stand for.

    Args:
        into: (T,) long, the token that each token joins; its own index for one that stays. A token that is joined
            must stay, and keeps its position.
        track_sizes: whether attention is to count a merged token as often as the tokens it stands for.
    """
    layout, hidden = row.layout, row.hidden[0]
    if layout.positions.ndim > 1 or layout.extras is not None or layout.blocks is not None:
        raise ValueError(
            "merging tokens has no meaning for this model: its tokens have more than states and a position"
        )
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
    images = np.array(layout.visual) > 0
    copied = np.flatnonzero(images & np.array([origin is None for origin in layout.forked_at]))
    if not len(copied):
        return row
    copy_of = np.full(len(images), -1)
    copy_of[copied] = len(images) + np.arange(len(copied))
    text = np.flatnonzero((layout.kinds != VISUAL) & (copy_of[layout.owners] >= 0))
    return row.select(
        np.concatenate([np.arange(len(layout.kinds)), text]),
        owners=np.concatenate([layout.owners, copy_of[layout.owners[text]]]),
        copied=[(layout.samples[sequence], layer) for sequence in copied],
    )
