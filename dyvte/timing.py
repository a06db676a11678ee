"""Timing: interleaved rounds, medians with their interquartile range, and seconds of each layer."""

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


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Wall seconds of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


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


class LayerClock:
    """Seconds of each decoder layer within a forward, from a mark at the start of each layer and of the final norm.

    On a GPU the marks are events in its stream, so that nothing waits.
    """

    def __init__(self, decoder: Any, device: torch.device):
        self._modules: list[Any] = [*decoder.layers, decoder.norm]
        self._device = device
        self._marks: list[Any] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take marks in the forwards of this block."""
        self._marks = []
        hooks = [module.register_forward_pre_hook(self._mark) for module in self._modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _mark(self, *_) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds per layer, summed over the forwards that ran."""
        synchronize(self._device)
        stride = len(self._modules)
        totals = [0.0] * (stride - 1)
        for start in range(0, len(self._marks), stride):
            marks = self._marks[start : start + stride]
            for layer, (one, other) in enumerate(zip(marks, marks[1:], strict=False)):
                totals[layer] += (
                    one.elapsed_time(other) / 1000 if self._device.type == "cuda" else other - one
                )
        return totals
