"""Timing: interleaved rounds, medians with their interquartile range, and seconds of each layer.

Called from :mod:`dyvte.bench` and :mod:`dyvte.engine`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

T = TypeVar("T")


def synchronize(device: torch.device) -> None:
    """Wait for the work that is queued on the device; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> float:
    """Seconds, once the device has finished its work."""
    synchronize(device)
    return time.perf_counter()


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Wall seconds of one call, the device's work included."""
    start = now(device)
    work()
    return now(device) - start


def interleaved(
    tasks: Mapping[str, Callable[[], T]], rounds: int, warmup: int = 1, progress: bool = False
) -> dict[str, list[T]]:
    """Run all tasks once per round, in another order each time, so that background load affects all tasks equally.

    Args:
        tasks: name -> a call that returns its own measurement.
        rounds: measurements of each task.
        warmup: rounds before them whose measurements are thrown away.

    Returns:
        name -> measurements; those with the same index are of the same round.

    Raises:
        ValueError: when there are no rounds to measure.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"--rounds must be at least 1, got {rounds}")
    names, order = list(tasks), random.Random(0)
    measured: dict[str, list[T]] = {name: [] for name in names}
    for turn in tqdm(range(warmup + rounds), desc="rounds", disable=not progress, leave=False):
        order.shuffle(names)
        for name in names:
            value = tasks[name]()
            if turn >= warmup:
                measured[name].append(value)
    return measured


@dataclass(frozen=True)
class Quartiles:
    """Median of some measurements, and their lower and upper quartile (the ends of the interquartile range)."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        low, median, high = np.percentile(np.asarray(values, dtype=float), [25, 50, 75])
        return cls(float(median), float(low), float(high))


class Marks:
    """Moments of a run. On a GPU they are events in its stream, so that nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def __call__(self, *_: object) -> None:
        """Take a mark; also as a hook."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self, stride: int) -> list[float]:
        """Seconds from each mark to the next, summed over the forwards, which took ``stride`` marks each."""
        synchronize(self._device)
        totals = [0.0] * (stride - 1)
        for start in range(0, len(self._marks), stride):
            marks = self._marks[start : start + stride]
            for place, (one, other) in enumerate(zip(marks, marks[1:], strict=False)):
                totals[place] += (
                    one.elapsed_time(other) / 1000 if self._device.type == "cuda" else other - one
                )
        return totals


class Clock:
    """Seconds between marks at the beginning or the end of modules, within forwards.

    Args:
        points: modules in the order in which they run, each with whether its end is meant.
    """

    def __init__(self, points: Sequence[tuple[Any, bool]], device: torch.device) -> None:
        self._points, self._device = points, device
        self._marks = Marks(device)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take marks in the forwards of this block."""
        self._marks = marks = Marks(self._device)
        hooks = [
            module.register_forward_hook(marks) if end else module.register_forward_pre_hook(marks)
            for module, end in self._points
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def seconds(self) -> list[float]:
        """Seconds from each point to the next, summed over the forwards that ran."""
        return self._marks.seconds(len(self._points))


class LayerClock(Clock):
    """Seconds of each decoder layer, from marks at the start of each layer and of the final norm."""

    def __init__(self, decoder: Any, device: torch.device) -> None:
        super().__init__([(module, False) for module in (*decoder.layers, decoder.norm)], device)
