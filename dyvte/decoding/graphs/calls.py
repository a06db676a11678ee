"""Functions of one tensor, such as a vision tower with its projector, one graph for each shape of their input.

Called by :mod:`dyvte.decoding.graphs.graphs`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor, nn

from dyvte.decoding.graphs.record import NotRecorded, Replay, address_of, ordinary_tensors

MOST_INPUTS = 4
"""Longer batches run as usual. CLIP-L at 336 pixels is some 300 launches (5 ms at the 16 us of the decoder's, see
docs/benchmarks/h100-before) and 0.35 TFLOPs an image: an estimate, to be replaced by a measurement."""
MOST_SHAPES = 8
"""Graphs kept, the least recently used given up. A choice: batches of up to four images of two sizes."""


class Calls:
    """What was recorded of a function's calls.

    Args:
        modules: whose weights it uses.
    """

    def __init__(self, modules: tuple[nn.Module, ...]) -> None:
        self._addresses = tuple(map(address_of, modules))
        self._devices = {weight.device for module in modules for weight in module.parameters()}
        self._lock = Lock()
        self._known: OrderedDict[tuple[torch.Size, torch.dtype], _Call | None] = OrderedDict()

    def fits(self, modules: tuple[nn.Module, ...]) -> bool:
        """Whether all weights are where they were."""
        return self._addresses == tuple(map(address_of, modules))

    def __call__(
        self,
        function: Callable[[Tensor], Tensor],
        value: Tensor,
        record: Callable[[Callable[[], None]], Replay],
        play: Callable[[Replay], None],
    ) -> Tensor:
        """``function(value)``: as usual for the first value of a shape and beside another thread, else replayed."""
        if len(value) > MOST_INPUTS or self._devices != {value.device}:
            return function(value)
        if not self._lock.acquire(blocking=False):
            return function(value)
        try:
            key = value.shape, value.dtype
            if key not in self._known:
                self._known[key] = None
                return function(value)
            self._known.move_to_end(key)
            call = self._known[key]
            if call is None:
                try:
                    call = self._known[key] = _Call(function, value, record)
                except NotRecorded:
                    return function(value)
                while len(self._known) > MOST_SHAPES:
                    self._known.popitem(last=False)
            call.input.copy_(value)
            play(call.replay)
            return call.output.clone()
        finally:
            self._lock.release()


class _Call:
    """One shape of input, with where it is read and its result is written."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        value: Tensor,
        record: Callable[[Callable[[], None]], Replay],
    ) -> None:
        with ordinary_tensors():
            self.input = value.clone()
            self.output = function(self.input).clone()  # the first call, in which libraries choose kernels

            def work() -> None:
                self.output.copy_(function(self.input))

            self.replay = record(work)
