"""How a buffer is read as batches: samples with slices of equal capacity, side by side, are one batch.

After mixed exits a layer typically has two groups, those that kept the image and those that did not; more where
lengths differ much within them. Keys, values, bias and places are views of the buffer, made once for as many steps as
fit; ``filled`` is a mask that the buffer updates in place.

Called by :mod:`dyvte.decoding.cache.buffer`, which must keep samples of equal capacity side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyvte.decoding.packed import to_device


@dataclass(frozen=True, eq=False)
class Group:
    """A batch of samples.

    Attributes:
        count: samples.
        keys, values: (count, heads, capacity, head_dim).
        filled: (count, 1, 1, capacity) bool, the places that hold a token; None where all samples hold equally many.
        bias: (count, 1, 1, capacity) float32, see :class:`~dyvte.decoding.cache.buffer.KVBuffer`.
        longest: tokens of the longest sample when the group was made.
        places: (count, 1, 1, capacity) long, see :class:`~dyvte.decoding.cache.buffer.KVBuffer`.
    """

    count: int
    keys: Tensor
    values: Tensor
    filled: Tensor | None
    bias: Tensor | None
    longest: int
    places: Tensor | None


Near = Callable[[Tensor, slice], Tensor]
"""(places (count, 1, 1, K) of a group's keys, which samples these are in the order of the buffer) -> bool, which keys
are within the layer's window."""


class Groups:
    """All groups of a buffer.

    Args:
        keys, values, bias, places: the buffer's, (heads, C, head_dim) and (1, C, 1).
        starts, lengths, capacities: per sample.
        static: see :class:`~dyvte.decoding.cache.buffer.KVBuffer`.

    Attributes:
        order, inverse: (samples,) long, the samples in the order of the buffer and back; None where the buffer holds
            them in order.
        ends: (samples,) long, where the next token of each sample goes.
        free: decoding steps until the first slice is full.
        filled: (C,) bool, which places hold a token; None where no group needs it.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        bias: Tensor | None,
        places: Tensor | None,
        starts: Sequence[int],
        lengths: Sequence[int],
        capacities: Sequence[int],
        static: bool,
    ) -> None:
        device = keys.device
        self._static = static
        order = sorted(range(len(lengths)), key=starts.__getitem__)
        self.order: Tensor | None = None
        self.inverse: Tensor | None = None
        if order != list(range(len(order))):
            self.order = to_device(order, device)
            self.inverse = self.order.argsort()
        self.free = min(capacity - held for capacity, held in zip(capacities, lengths, strict=True))
        self.ends = to_device([start + held for start, held in zip(starts, lengths, strict=True)], device)
        members = [list(group) for _, group in groupby(order, key=capacities.__getitem__)]
        uneven = [static or len({lengths[sample] for sample in group}) > 1 for group in members]
        self.filled: Tensor | None = None
        if any(uneven):
            self.filled = torch.zeros(keys.shape[1], dtype=torch.bool, device=device)
            self.filled.index_fill_(0, to_device(slices(starts, lengths), device), True)
        self._groups: list[Group] = []
        for group, masked in zip(members, uneven, strict=True):
            first, capacity = starts[group[0]], capacities[group[0]]

            def view(
                buffer: Tensor, first: int = first, capacity: int = capacity, count: int = len(group)
            ) -> Tensor:
                part = buffer.narrow(1, first, count * capacity)
                return part.unflatten(1, (count, capacity)).transpose(0, 1)

            filled = self.filled if masked else None
            self._groups.append(
                Group(
                    count=len(group),
                    keys=view(keys),
                    values=view(values),
                    filled=None if filled is None else view(filled[None, :, None]).transpose(2, 3),
                    bias=None if bias is None else view(bias).transpose(2, 3),
                    longest=max(lengths[sample] for sample in group),
                    places=None if places is None else view(places).transpose(2, 3),
                )
            )

    def batches(self, steps: int, near: Near | None = None) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Keys and values of all samples in the order of the buffer, cut into groups: views, whatever the lengths.

        Args:
            steps: tokens that every sample has got since the groups were made.
            near: which keys the layer's window lets each sample see; all by default.

        Returns:
            per group keys and values (samples, heads, K, head_dim), and a mask (samples, 1, 1, K): bool, which of
            them count, or float32, what to add to their scores; None where all count as they are.
        """
        batches: list[tuple[Tensor, Tensor, Tensor | None]] = []
        done = 0
        for group in self._groups:
            held = group.keys.shape[2] if self._static else group.longest + steps
            mask = None if group.filled is None else group.filled.narrow(3, 0, held)
            if near is not None and group.places is not None:
                seen = near(group.places.narrow(3, 0, held), slice(done, done + group.count))
                mask = seen if mask is None else mask & seen
            if group.bias is not None:
                bias = group.bias.narrow(3, 0, held)
                mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
            batches.append((group.keys.narrow(2, 0, held), group.values.narrow(2, 0, held), mask))
            done += group.count
        return batches


def slices(starts: Sequence[int], lengths: Sequence[int]) -> NDArray[np.int64]:
    """Indices ``start .. start + length - 1`` of all slices, one after another."""
    counts = np.array(lengths, dtype=np.int64)
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(np.array(starts, dtype=np.int64) - before, counts)
