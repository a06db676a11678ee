"""What limits a decoder layer on this machine: arithmetic, bytes read, or launches.

Three rates are measured in the same rounds as everything else: a matrix product of the layer's own shape (FLOP/s), a
copy of a large tensor (bytes read and written per second), and a layer of the same operations over next to nothing
(seconds that the host needs to launch it, Python included). Each gives a time that the layer could not go below:

    arithmetic   the layer's FLOPs / rate of the matrix product
    bytes        weights of the layer, and keys and values that are read, / rate of the copy
    launches     seconds of the narrow layer

The longest of the three names the regime. Overlap makes the sum of them no prediction; the longest is a lower bound.

Called by :mod:`dyvte.bench.decode` and :mod:`dyvte.bench.prefill`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dyvte.cost.flops import layer_params
from dyvte.cost.layers import LayerCost
from dyvte.timing import LayerClock, seconds_of

COPY_BYTES = 256 * 2**20
"""A choice: larger than the last-level caches of the machines measured, so that a copy reaches memory."""
NARROW = 8
"""Width of a head, and of the MLP, in the narrow layer: the least that all attention kernels take."""


@dataclass(frozen=True)
class Rates:
    """FLOP/s of matrix products, bytes/s of copies (read and written), seconds to launch a layer."""

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
            "launches": rates.launch,
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
    params, cost = layer_params(config), LayerCost.of_config(config)
    flops = samples * (cost.per_token * tokens + cost.per_pair * tokens * held)
    return Load(flops, (params + samples * held * cost.cached) * dtype.itemsize, launches)


def narrow_copy(model) -> Any:
    """A decoder of the same class and depth that launches the same operations over hardly any numbers."""
    config = copy.deepcopy(model.config)
    config.hidden_size = NARROW * config.num_attention_heads
    config.head_dim = config.intermediate_size = config.vocab_size = NARROW
    with torch.device(model.device):
        narrow = type(model)(config).to(model.dtype).eval().requires_grad_(False)
    narrow.set_attn_implementation(model.config._attn_implementation)
    return narrow


def rate_tasks(model, tokens: int) -> dict[str, Callable[[], float]]:
    """Tasks, for :func:`dyvte.timing.interleaved`, that measure the rates for rows of ``tokens`` tokens."""
    config, dtype, device = model.config, model.dtype, model.device
    left = torch.randn(tokens, config.hidden_size, device=device, dtype=dtype)
    right = torch.randn(config.intermediate_size, config.hidden_size, device=device, dtype=dtype)
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target, narrow = torch.empty_like(source), narrow_copy(model)
    clock = LayerClock(narrow.model, device)
    row = torch.zeros(1, 2, narrow.config.hidden_size, device=device, dtype=dtype)

    def launch() -> float:
        with clock.running():
            narrow(inputs_embeds=row, use_cache=True, logits_to_keep=1)
        return median(clock.seconds())

    return {
        "rate: matmul": lambda: seconds_of(lambda: torch.nn.functional.linear(left, right), device),
        "rate: copy": lambda: seconds_of(lambda: target.copy_(source), device),
        "rate: launch": launch,
    }


def rates_of(config, tokens: int, measured: dict[str, list[float]]) -> Rates:
    """Rates from what :func:`rate_tasks` measured."""
    flops = 2 * tokens * config.hidden_size * config.intermediate_size
    return Rates(
        flops / median(measured["rate: matmul"]),
        2 * COPY_BYTES / median(measured["rate: copy"]),
        median(measured["rate: launch"]),
    )
