"""A decoding step, recorded as one graph against the cache's buffers.

It reads all capacity of the buffers through a mask, and is replayed until a sample's slice is full or the cache is
changed otherwise.

Called by :mod:`dyvte.decoding.graphs.graphs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from weakref import WeakMethod, ref

import torch
from torch import Tensor

from dyvte.decoding.cache.ragged import RaggedCache
from dyvte.decoding.graphs.record import Replay
from dyvte.decoding.packed import Layout, PackedRow
from dyvte.families.stack import Stack

STEPS_BEFORE = 2
"""Steps taken as usual before one is recorded, which costs about as much: short answers are not worth a recording."""


class RunLayers(Protocol):
    """:func:`dyvte.decoding.loop.run_layers`."""

    def __call__(self, stack: Stack, row: PackedRow, *, cache: RaggedCache) -> PackedRow:
        """All layers and the final norm over a row of single tokens."""
        ...


class Step:
    """A decoding step of one epoch of one cache; given up with the cache.

    Args:
        forget: a method, called when the cache is gone: with the step goes its graph, which holds memory.

    Attributes:
        seen: steps taken as usual.
        replay: the recorded step; None so far.
        hidden, positions, out: what it reads and writes.
    """

    hidden: Tensor
    positions: Tensor
    out: Tensor

    def __init__(self, cache: RaggedCache, forget: Callable[[Step], None]) -> None:
        weak_step, weak_forget = ref(self), WeakMethod(forget)

        def gone(_: object) -> None:
            step, method = weak_step(), weak_forget()
            if step is not None and method is not None:
                method(step)

        self._cache = ref(cache, gone)
        self._epoch = -1
        self.seen = 0
        self.replay: Replay | None = None

    def note(self, row: PackedRow, cache: RaggedCache) -> PackedRow:
        """Remember the epoch that a step as usual has left, and pass its result on."""
        self._epoch = cache.epoch
        self.seen += 1
        return row

    def continues(self, row: PackedRow, cache: RaggedCache) -> bool:
        """Whether the epoch is still the same, and every slice has room for one more token."""
        same = cache is self._cache() and cache.epoch == self._epoch and cache.free_steps > 0
        return same and (self.replay is None or self.hidden.shape == row.hidden.shape)

    def prepare(self, stack: Stack, row: PackedRow, cache: RaggedCache, run: RunLayers) -> Callable[[], None]:
        """What is to be recorded."""
        self.hidden, self.positions = row.hidden.clone(), row.layout.positions.clone()
        self.out = torch.empty_like(self.hidden)  # of its own: the graphs' memory is any other graph's too
        layout = Layout.of_single_tokens(self.positions)

        def work() -> None:
            self.out.copy_(run(stack, PackedRow(self.hidden, layout), cache=cache).hidden)

        return work
