"""A KV cache in which each layer holds, for each sample, just the tokens it saw.

Keys and values of a layer lie in one buffer (heads, C, head_dim); every sample owns a stretch of it. After prefill
the stretches have no slack: the bytes held are those of the trace. The first decoding step gives each stretch room
to grow, and a step then writes one token per sample in place.

Samples of similar length get equal room and lie side by side, so that attention reads each such group as one batch,
whatever the number of samples: after mixed exits a layer has two groups, those that kept the image and those that
did not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from dyvte.decoding.packed import to_device

GROWTH = 64
"""Tokens of room added to each sample's stretch when it is full; a stretch grows by a quarter if that is more."""


@dataclass(frozen=True, eq=False)
class Group:
    """Samples with stretches of equal room, side by side in the buffer: a batch of ``count`` samples.

    Attributes:
        keys, values: (count, heads, room, head_dim), views of the buffers.
        filled: (count, 1, 1, room) bool, the places that hold a token; None where all samples hold equally many.
        bias: (count, 1, 1, room) float32, see :attr:`RaggedLayer.bias`.
        longest: tokens of the longest sample when the group was made.
    """

    keys: Tensor
    values: Tensor
    filled: Tensor | None
    bias: Tensor | None
    longest: int


class RaggedLayer(CacheLayerMixin):
    """One layer's keys and values, (heads, C, head_dim) each.

    Attributes:
        starts, capacities: per sample, on the host: where its stretch begins, and its room in tokens.
        order, inverse: (samples,) long, the samples in the order of the buffer and back; None where it is theirs.
        bias: (1, C, 1) float32, added to the scores of each key (of merged tokens); None where there is none.
        static: whether steps read all room that there is, and a mask, so that their shapes stay the same until some
            room is full, as graphs need it; otherwise only what the longest sample of a group holds.
    """

    is_sliding = False
    is_croppable = True
    keys: Any  # tensors from the first `append` on
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[int] = []
        self.capacities: list[int] = []
        self.order: Tensor | None = None
        self.inverse: Tensor | None = None
        self.bias: Tensor | None = None
        self.static = False
        self._lengths: list[int] = []
        self._steps = 0  # tokens added to every sample since `_lengths` was noted
        self._groups: list[Group] | None = None
        self._filled: Tensor | None = (
            None  # (C,) bool, which places hold a token; only where a group needs it
        )

    @property
    def lengths(self) -> list[int]:
        """Tokens held, per sample."""
        return [length + self._steps for length in self._lengths]

    def append(
        self, keys: Tensor, values: Tensor, lengths: tuple[int, ...], bias: Tensor | None = None
    ) -> None:
        """Add a packed row of new tokens.

        Args:
            keys, values: (1, heads, T, head_dim).
            lengths: per sample.
            bias: (T,) float32, see :attr:`bias`; zeros by default.
        """
        if not self.is_initialized:
            self.keys, self.values, self.is_initialized = keys[0], values[0], True
            self.bias = None if bias is None else bias[None, :, None]
            self.capacities = list(lengths)
            self.starts = list(accumulate(lengths[:-1], initial=0))
            self._note_lengths(list(lengths))
        elif max(lengths) == 1 and self._groups is not None and self._steps < self._free:
            self._write(self._ends, keys, values, bias)
            self._ends.add_(1)
            self._steps += 1
        else:
            held = self.lengths
            totals = [old + new for old, new in zip(held, lengths, strict=True)]
            if any(total > room for total, room in zip(totals, self.capacities, strict=True)):
                self._arrange(range(len(totals)), _rooms(totals))
            ends = [start + length for start, length in zip(self.starts, held, strict=True)]
            self._write(_stretches(ends, lengths, keys.device), keys, values, bias)
            self._note_lengths(totals)

    def _write(self, index: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> None:
        self.keys.index_copy_(1, index, keys[0])
        self.values.index_copy_(1, index, values[0])
        if bias is not None and self.bias is None:
            self.bias = bias.new_zeros(1, sum(self.capacities), 1)
            self._groups = None
        if self.bias is not None and bias is None:
            self.bias.index_fill_(1, index, 0.0)  # assigning would copy the zero from the host
        elif self.bias is not None:
            self.bias.index_copy_(1, index, bias[None, :, None])
        if self._filled is not None:
            self._filled.index_fill_(0, index, True)

    def _note_lengths(self, lengths: list[int]) -> None:
        self._lengths, self._steps, self._groups, self._filled = lengths, 0, None, None

    def _arrange(self, samples: Sequence[int], rooms: list[int]) -> None:
        """Move to a buffer that holds these samples, in stretches of these rooms, equal rooms side by side."""
        lengths = self.lengths
        lengths = [lengths[sample] for sample in samples]
        order = sorted(range(len(rooms)), key=lambda at: -rooms[at])
        starts = [0] * len(rooms)
        for at, start in zip(order, accumulate((rooms[at] for at in order), initial=0), strict=False):
            starts[at] = start
        old = _stretches([self.starts[sample] for sample in samples], lengths, self.keys.device)
        new = _stretches(starts, lengths, self.keys.device)

        def move(buffer: Tensor) -> Tensor:
            # zeros, because masked keys must still be finite
            wider = buffer.new_zeros(buffer.shape[0], sum(rooms), buffer.shape[2])
            return wider.index_copy_(1, new, buffer.index_select(1, old))

        self.keys, self.values = move(self.keys), move(self.values)
        self.bias = None if self.bias is None else move(self.bias)
        self.starts, self.capacities = starts, rooms
        self._note_lengths(lengths)

    def _make_groups(self) -> list[Group]:
        """Note, once for many steps, how the buffer is read as batches, and where the next tokens go."""
        lengths, device = self.lengths, self.keys.device
        order = sorted(range(len(lengths)), key=self.starts.__getitem__)
        self.order = self.inverse = None
        if order != list(range(len(order))):
            self.order = to_device(order, device)
            self.inverse = self.order.argsort()
        self._free = min(room - held for room, held in zip(self.capacities, lengths, strict=True))
        ends = [start + held for start, held in zip(self.starts, lengths, strict=True)]
        self._ends = to_device(ends, device)
        self._note_lengths(lengths)
        members = [list(group) for _, group in groupby(order, key=self.capacities.__getitem__)]
        uneven = [self.static or len({lengths[sample] for sample in group}) > 1 for group in members]
        if any(uneven):
            filled = torch.zeros(self.keys.shape[1], dtype=torch.bool, device=device)
            self._filled = filled.index_fill_(0, _stretches(self.starts, lengths, device), True)
        self._groups = [
            self._group(group, self._filled if masked else None, lengths)
            for group, masked in zip(members, uneven, strict=True)
        ]
        return self._groups

    def _group(self, samples: list[int], filled: Tensor | None, lengths: list[int]) -> Group:
        first, room = self.starts[samples[0]], self.capacities[samples[0]]

        def view(buffer: Tensor) -> Tensor:
            stretches = buffer.narrow(1, first, len(samples) * room)
            return stretches.unflatten(1, (len(samples), room)).transpose(0, 1)

        return Group(
            keys=view(self.keys),
            values=view(self.values),
            filled=None if filled is None else view(filled[None, :, None]).transpose(2, 3),
            bias=None if self.bias is None else view(self.bias).transpose(2, 3),
            longest=max(lengths[sample] for sample in samples),
        )

    def batches(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Keys and values of all samples in the order of the buffer, cut into groups: views, whatever the lengths.

        Returns:
            per group keys and values (samples, heads, K, head_dim), and a mask (samples, 1, 1, K): bool, which of
            them count, or float32, what to add to their scores; None where all count as they are.
        """
        groups = self._make_groups() if self._groups is None else self._groups
        batches = []
        for group in groups:
            held = group.keys.shape[2] if self.static else group.longest + self._steps
            mask = None if group.filled is None else group.filled.narrow(3, 0, held)
            if group.bias is not None:
                bias = group.bias.narrow(3, 0, held)
                mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
            batches.append((group.keys.narrow(2, 0, held), group.values.narrow(2, 0, held), mask))
        return batches

    def segment(self, sample: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one sample, views of (heads, tokens, head_dim)."""
        at = slice(self.starts[sample], self.starts[sample] + self._lengths[sample] + self._steps)
        return self.keys[:, at], self.values[:, at]

    def segment_bias(self, sample: int) -> Tensor | None:
        """The bias of one sample's keys, (1, tokens); None where there is none."""
        start = self.starts[sample]
        stop = start + self._lengths[sample] + self._steps
        return None if self.bias is None else self.bias[:, start:stop, 0]

    def packed(self) -> tuple[Tensor, Tensor]:
        """Keys and values without slack, (heads, sum of lengths, head_dim); a copy where there is slack."""
        index = _stretches(self.starts, self.lengths, self.keys.device)
        return self.keys.index_select(1, index), self.values.index_select(1, index)

    @property
    def free_steps(self) -> int:
        """Steps that can be taken without another arrangement of the buffer."""
        return 0 if self._groups is None else self._free - self._steps

    def select(self, samples: list[int]) -> None:
        """Hold these samples, in this order; a sample may occur more than once (beams)."""
        self._arrange(samples, [self.capacities[sample] for sample in samples])

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens of every sample."""
        self._note_lengths([held + tokens_to_remove for held in self.lengths])

    def take_back(self, lengths: tuple[int, ...]) -> None:
        """Forget the last few tokens of each sample, all that it has of them included."""
        left = [held - taken for held, taken in zip(self.lengths, lengths, strict=True)]
        self._note_lengths(left)
        if not any(left):
            self.is_initialized = False  # the next `append` takes its tensors as they are

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held, without room to grow."""
        if not self.is_initialized:
            return 0
        heads, _, width = self.keys.shape
        return 2 * sum(self.lengths) * heads * width * self.keys.element_size()

    @property
    def allocated_nbytes(self) -> int:
        """Bytes of the buffers, with room to grow."""
        return self.keys.nbytes + self.values.nbytes if self.is_initialized else 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the first :meth:`append` takes the tensors as they are."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Not how this cache is filled: it must know which token belongs to which sample."""
        raise TypeError("a RaggedCache is filled by the packed layer loop; attach the model it came from")

    def get_seq_length(self) -> int:
        """Tokens held by the longest sample."""
        return max(self.lengths, default=0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens after adding ``query_length``, offset 0)."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: no maximum."""
        return -1

    get_max_cache_shape = get_max_length  # the name before transformers 5.20


class RaggedCache(Cache):
    """Per layer and sample just the tokens that were computed there; a ``transformers`` cache for ``generate``.

    Attributes:
        columns: padded columns seen so far, the length that ``generate`` counts in.
        next_positions: (samples,) long, the position of the next token of each sample: it goes on from the full
            prompt's length whatever left the cache.
    """

    layers: list[RaggedLayer]  # type: ignore[assignment] - narrower than the base class has it

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[RaggedLayer() for _ in range(num_layers)])
        self.columns = 0
        self.next_positions = torch.zeros(0, dtype=torch.long)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Padded columns seen so far, the same for every layer."""
        return self.columns

    def advance(self, columns: int, next_positions: Tensor) -> None:
        """Note that ``columns`` more columns were computed, and each sample's next position."""
        self.columns += columns
        self.next_positions = next_positions

    def make_static(self) -> None:
        """From now on steps have the same shapes until some room is full; see :attr:`RaggedLayer.static`."""
        for layer in self.layers:
            if not layer.static:
                layer.static, layer._groups = True, None

    @property
    def arrangement(self) -> list[object]:
        """By layer, what stays the same object as long as steps read and write the same places of the buffers."""
        return [layer._groups for layer in self.layers]

    @property
    def free_steps(self) -> int:
        """Steps that every layer can take without another arrangement."""
        return min(layer.free_steps for layer in self.layers)

    def count_step(self) -> None:
        """Note that a replayed graph has added one token to every sample of every layer."""
        for layer in self.layers:
            layer._steps += 1

    @property
    def kv_lengths(self) -> list[list[int]]:
        """Tokens held, [layer][sample]."""
        return [list(layer.lengths) for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def allocated_nbytes(self) -> int:
        """Bytes of the buffers that hold them, with room to grow."""
        return sum(layer.allocated_nbytes for layer in self.layers)

    def _select(self, samples: Tensor) -> None:
        for layer in self.layers:
            layer.select(samples.tolist())
        self.next_positions = self.next_positions[samples.to(self.next_positions.device)]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Hold the samples at ``beam_idx`` (samples,)."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the samples at ``indices``."""
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample ``repeats`` times."""
        self._select(torch.arange(len(self.next_positions)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of every sample: a negative number of them, or the columns to keep."""
        removed = -tokens_to_remove if tokens_to_remove < 0 else max(self.columns - tokens_to_remove, 0)
        for layer in self.layers:
            if removed >= min(layer.lengths):
                raise ValueError(f"cannot remove {removed} tokens: a sample holds only {min(layer.lengths)}")
            layer.crop(-removed)
        self.columns -= removed
        self.next_positions = self.next_positions - removed


def _rooms(totals: list[int]) -> list[int]:
    """Room for each sample: that of the longest sample of its group, and some to grow."""
    rooms, room, longest = [0] * len(totals), 0, 0
    for at in sorted(range(len(totals)), key=lambda at: -totals[at]):
        if not room or longest - totals[at] > max(GROWTH, longest // 4):
            longest, room = totals[at], totals[at] + max(GROWTH, totals[at] // 4)
        rooms[at] = room
    return rooms


def _stretches(starts: Sequence[int], lengths: Sequence[int], device) -> Tensor:
    """Indices ``start .. start + length - 1`` of all stretches, one after another."""
    rows = np.cumsum(lengths) - lengths
    return to_device(np.arange(sum(lengths)) + np.repeat(np.array(starts) - rows, lengths), device)
