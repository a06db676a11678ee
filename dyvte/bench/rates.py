"""What limits a decoder layer on this machine: arithmetic, bytes read, or launches.

Three rates are measured in the same rounds as everything else: a matrix product of the layer's own shape (FLOP/s), a
copy of a large tensor (bytes read and written per second), and a small operation (seconds from one launch to the
next). Each gives a time that the layer could not go below:

    arithmetic   the layer's FLOPs / rate of the matrix product
    bytes        weights of the layer, and keys and values that are read, / rate of the copy
    launches     operations of the layer / operations per second

The longest of the three names the regime. Overlap makes the sum of them no prediction; the longest is a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dyvte.cost.flops import layer_params
from dyvte.timing import seconds_of

COPY_BYTES = 256 * 2**20
"""A choice: larger than the last-level caches of the machines measured, so that a copy reaches memory."""
SMALL_OPERATIONS = 200
"""A choice: enough that the two synchronizations around them do not count."""


@dataclass(frozen=True)
class Rates:
    """FLOP/s of matrix products, bytes/s of copies (read and written), seconds per small operation."""

    flops: float
    bytes: float
    launch: float


@dataclass(frozen=True)
class Load:
    """Work of a decoder layer: FLOPs, bytes read, operations launched."""

    flops: float
    bytes: float
    launches: int

    def bounds(self, rates: Rates) -> dict[str, float]:
        """Seconds that each limit alone would take."""
        return {
            "arithmetic": self.flops / rates.flops,
            "bytes": self.bytes / rates.bytes,
            "launches": self.launches * rates.launch,
        }

    def regime(self, rates: Rates) -> str:
        """The limit that takes longest: "arithmetic", "bytes" or "launches"."""
        bounds = self.bounds(rates)
        return max(bounds, key=bounds.__getitem__)


class _Count(TorchDispatchMode):
    """Counts operations that are not mere views."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returns = func._schema.returns
        view = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
        self.operations += not view
        return func(*args, **(kwargs or {}))


def count_operations(work: Callable[[], object]) -> int:
    """Operations that a call launches, views left out."""
    with _Count() as count:
        work()
    return count.operations


def layer_load(config, dtype, tokens: int, samples: int, held: int, launches: int) -> Load:
    """The work of one layer.

    Args:
        tokens: computed per sample.
        samples: in the batch.
        held: keys per sample that each token attends to (causality is not counted as a saving).
        launches: operations per layer.
    """
    params = layer_params(config)
    width = config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    kv_bytes = 2 * samples * held * (width // config.num_attention_heads) * kv_heads * dtype.itemsize
    flops = samples * (2 * params * tokens + 4 * tokens * held * width)
    return Load(flops, params * dtype.itemsize + kv_bytes, launches)


def rate_tasks(config, tokens: int, dtype, device: torch.device) -> dict[str, Callable[[], float]]:
    """Tasks, for :func:`dyvte.timing.interleaved`, that measure the rates for rows of ``tokens`` tokens."""
    left = torch.randn(tokens, config.hidden_size, device=device, dtype=dtype)
    right = torch.randn(config.intermediate_size, config.hidden_size, device=device, dtype=dtype)
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target, small = torch.empty_like(source), torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(SMALL_OPERATIONS):
            small.add_(1)

    return {
        "rate: matmul": lambda: seconds_of(lambda: torch.nn.functional.linear(left, right), device),
        "rate: copy": lambda: seconds_of(lambda: target.copy_(source), device),
        "rate: launch": lambda: seconds_of(launches, device),
    }


def rates_of(config, tokens: int, measured: dict[str, list[float]]) -> Rates:
    """Rates from what :func:`rate_tasks` measured."""
    flops = 2 * tokens * config.hidden_size * config.intermediate_size
    return Rates(
        flops / median(measured["rate: matmul"]),
        2 * COPY_BYTES / median(measured["rate: copy"]),
        median(measured["rate: launch"]) / SMALL_OPERATIONS,
    )
