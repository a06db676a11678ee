"""How work is recorded, and the memory that recorded work may use.

Called throughout :mod:`dyvte.decoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

import torch

Replay = Callable[[], None]
Record = Callable[[Callable[[], None]], Replay]
"""Records the device's work of a function without doing it; gives a function that does it."""


class NotRecorded(RuntimeError):
    """Work could not be recorded: it runs as usual from now on."""


@contextmanager
def ordinary_tensors() -> Generator[None]:
    """Within it tensors are neither inference tensors nor part of an autograd graph.

    Static buffers are made, and work is recorded, in here: they serve callers inside and outside of
    ``torch.inference_mode``, and compiled code meets one mode only.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


class CudaGraphs:
    """Records with ``torch.cuda.CUDAGraph``, on the current device.

    Results of a graph have to be copied before another one is replayed: all of a device share one pool of memory.
    This does what ``torch.cuda.graph`` does, but for collecting garbage and handing all cached memory back each time.
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]] = {}
        self._lock = Lock()  # all recordings of a device are made on one stream

    def __call__(self, work: Callable[[], None]) -> Replay:
        """The recorded work."""
        device = torch.cuda.current_device()
        with self._lock:
            if device not in self._of:
                stream = torch.cuda.Stream()
                # CUDA frees a pool with the last of its graphs and refuses a new one in it: this graph keeps it alive
                pool = torch.cuda.graph_pool_handle()
                keeper = _capture(lambda: torch.zeros(1, device="cuda"), stream, pool)
                self._of[device] = stream, keeper
            stream, keeper = self._of[device]
            return _capture(work, stream, keeper.pool()).replay

    def close(self) -> None:
        """Give up the pools. Those that graphs still use stay as long as they do."""
        self._of.clear()


def _capture(work: Callable[[], object], stream: torch.cuda.Stream, pool: Any) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # libraries allocate a workspace at their first call on a stream: not inside the recording
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            square = torch.ones(16, 16, device="cuda", dtype=dtype)
            torch.mm(square, square)
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with suppress(RuntimeError):  # that the recording is broken: the cause is the error at hand
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


def address_of(module: object) -> tuple[int, ...]:
    """Where all weights of a module are. ``module.parameters()`` takes three times as long, at every prefill."""
    found: list[int] = []
    left = [module]
    while left:
        at = left.pop()
        parts = vars(at)
        found.extend(part.data_ptr() for part in parts["_parameters"].values() if part is not None)
        left.extend(part for part in parts["_modules"].values() if part is not None)
    return tuple(found)
