"""One layer's keys and values in one buffer, of which every sample owns a slice.

After prefill the slices are full: the bytes held are those of the trace. The first decoding step moves them to a
buffer with capacity for more tokens, samples of similar length getting the same capacity, side by side. A step then
writes one token per sample in place, until one of them is full::

    place        0         10        20        30
    after        aaabbbbbbbbbcccc                              lengths 3 9 4, capacities 3 9 4
    prefill

    first step   bbbbbbbbbB..aaaA..ccccC.                      lengths 4 10 5, capacities 6 12 6
                 |           |     |                           starts 12 0 18: longest first
                 group 0     group 1: one batch of two samples

Lower case: a token held; capital: the new one; dot: unused capacity. Here a slice grows by two tokens; really by
:data:`GROWTH` or a quarter.

Called throughout :mod:`dyvte.decoding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, count

from torch import Tensor

from dyvte.decoding.cache.groups import Groups, Near, slices
from dyvte.decoding.packed import to_device

GROWTH = 64
"""Tokens of capacity added to a full slice; a quarter of its length if that is more. A choice, not a measurement: it
bounds unused memory by 25%, and moves a buffer at most once in 64 steps (a move costs about as much as a step)."""

_epochs = count()


class KVBuffer:
    """Keys and values of one layer, (heads, C, head_dim) each.

    Attributes:
        starts, capacities: per sample, on the host: where its slice begins, and how many tokens fit.
        bias: (1, C, 1) float32, added to the scores of each key (of merged tokens); None where there is none.
        places: (1, C, 1) long, of each key in its unpadded prompt; None where the layer sees all of it.
        static: whether steps read all capacity, through a mask, so that their shapes stay the same until a slice is
            full, as graphs need it; otherwise only what the longest sample of a group holds.
        epoch: a number that no other buffer has had, and that changes whenever later steps will read or write other
            places than before.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        lengths: Sequence[int],
        bias: Tensor | None = None,
        places: Tensor | None = None,
        static: bool = False,
    ) -> None:
        self.keys, self.values = keys, values
        self.bias = None if bias is None else bias[None, :, None]
        self.places = None if places is None else places[None, :, None]
        self.starts = list(accumulate(lengths[:-1], initial=0))
        self.capacities = list(lengths)
        self.static = static
        self._note(list(lengths))

    def _note(self, lengths: list[int]) -> None:
        """The samples hold these lengths now; whatever was planned for steps is void."""
        self._lengths = lengths
        self._steps = 0  # tokens added to every sample since then
        self._groups: Groups | None = None
        self.epoch = next(_epochs)

    @property
    def lengths(self) -> list[int]:
        """Tokens held, per sample."""
        return [length + self._steps for length in self._lengths]

    @property
    def free_steps(self) -> int:
        """Steps that can be taken in place."""
        return 0 if self._groups is None else self._groups.free - self._steps

    def append(
        self,
        keys: Tensor,
        values: Tensor,
        lengths: Sequence[int],
        bias: Tensor | None = None,
        places: Tensor | None = None,
    ) -> None:
        """Add ``lengths`` tokens to the samples; see :meth:`~dyvte.decoding.cache.ragged.RaggedLayer.append`."""
        if bias is None and self._groups is not None and self.free_steps > 0 and max(lengths) == 1:
            self._write(self._groups.ends, keys, values, None, places)
            self._groups.ends.add_(1)
            self._steps += 1
            return
        held = self.lengths
        totals = [old + new for old, new in zip(held, lengths, strict=True)]
        if any(total > capacity for total, capacity in zip(totals, self.capacities, strict=True)):
            self._move(range(len(totals)), _capacities(totals))
        ends = [start + length for start, length in zip(self.starts, held, strict=True)]
        self._write(to_device(slices(ends, lengths), keys.device), keys, values, bias, places)
        self._note(totals)

    def _write(
        self, index: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, places: Tensor | None
    ) -> None:
        self.keys.index_copy_(1, index, keys[0])
        self.values.index_copy_(1, index, values[0])
        if self.places is not None:
            assert places is not None, "this layer's keys have places"
            self.places.index_copy_(1, index, places[None, :, None])
        if bias is not None and self.bias is None:
            self.bias = bias.new_zeros(1, sum(self.capacities), 1)
            self._note(self.lengths)
        if self.bias is not None and bias is None:
            self.bias.index_fill_(1, index, 0.0)  # assigning would copy the zero from the host
        elif self.bias is not None and bias is not None:
            self.bias.index_copy_(1, index, bias[None, :, None])
        if self._groups is not None and self._groups.filled is not None:
            self._groups.filled.index_fill_(0, index, True)

    def _move(self, samples: Sequence[int], capacities: list[int]) -> None:
        """Move to a buffer that holds these samples in slices of these capacities, equal ones side by side."""
        held = self.lengths
        lengths = [held[sample] for sample in samples]
        order = sorted(range(len(capacities)), key=lambda at: -capacities[at])
        starts = [0] * len(capacities)
        for at, start in zip(order, accumulate((capacities[at] for at in order), initial=0), strict=False):
            starts[at] = start
        device = self.keys.device
        old = to_device(slices([self.starts[sample] for sample in samples], lengths), device)
        new = to_device(slices(starts, lengths), device)

        def move(buffer: Tensor) -> Tensor:
            # zeros, because masked keys must still be finite
            wider = buffer.new_zeros(buffer.shape[0], sum(capacities), buffer.shape[2])
            return wider.index_copy_(1, new, buffer.index_select(1, old))

        self.keys, self.values = move(self.keys), move(self.values)
        self.bias = None if self.bias is None else move(self.bias)
        self.places = None if self.places is None else move(self.places)
        self.starts, self.capacities = starts, capacities
        self._note(lengths)

    def groups(self) -> Groups:
        """How steps read the buffer; made once for as many steps as fit."""
        if self._groups is None:
            self._lengths, self._steps = self.lengths, 0
            self._groups = Groups(
                self.keys,
                self.values,
                self.bias,
                self.places,
                self.starts,
                self._lengths,
                self.capacities,
                self.static,
            )
        return self._groups

    def batches(self, near: Near | None = None) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Keys, values and mask of each group of samples; see :meth:`Groups.batches`."""
        return self.groups().batches(self._steps, near)

    def count_step(self) -> None:
        """Note that a replayed graph has written one token of every sample."""
        self._steps += 1

    def make_static(self) -> None:
        """See :attr:`static`."""
        if not self.static:
            self.static = True
            self._note(self.lengths)

    def sequence(self, sample: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one sample, views of (heads, tokens, head_dim)."""
        at = self._at(sample)
        return self.keys[:, at], self.values[:, at]

    def sequence_bias(self, sample: int) -> Tensor | None:
        """The bias of one sample's keys, (1, tokens); None where there is none."""
        return None if self.bias is None else self.bias[:, self._at(sample), 0]

    def sequence_places(self, sample: int) -> Tensor:
        """(tokens,) long, places of one sample's keys; for layers with a window."""
        assert self.places is not None, "this layer's keys have no places"
        return self.places[0, self._at(sample), 0]

    def _at(self, sample: int) -> slice:
        start = self.starts[sample]
        return slice(start, start + self._lengths[sample] + self._steps)

    def packed(self) -> tuple[Tensor, Tensor]:
        """Copies of keys and values without unused capacity, (heads, sum of lengths, head_dim)."""
        index = to_device(slices(self.starts, self.lengths), self.keys.device)
        return self.keys.index_select(1, index), self.values.index_select(1, index)

    def select(self, samples: Sequence[int]) -> None:
        """Hold these samples, in this order; a sample may occur more than once (beams)."""
        self._move(samples, [self.capacities[sample] for sample in samples])

    def crop(self, tokens: int) -> None:
        """Forget the last ``tokens`` of every sample."""
        self._note([length - tokens for length in self.lengths])

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held, without unused capacity."""
        heads, _, width = self.keys.shape
        return sum(self.lengths) * heads * (width + self.values.shape[2]) * self.keys.element_size()

    @property
    def allocated_nbytes(self) -> int:
        """Bytes of the buffers, with unused capacity."""
        return self.keys.nbytes + self.values.nbytes


def _capacities(totals: Sequence[int]) -> list[int]:
    """Capacity for each sample: that of the longest sample of its group, and some to grow."""
    capacities, capacity, longest = [0] * len(totals), 0, 0
    for at in sorted(range(len(totals)), key=lambda at: -totals[at]):
        if not capacity or longest - totals[at] > max(GROWTH, longest // 4):
            longest, capacity = totals[at], totals[at] + max(GROWTH, totals[at] // 4)
        capacities[at] = capacity
    return capacities
