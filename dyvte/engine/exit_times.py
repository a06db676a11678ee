"""Milliseconds of a prefill with exit after each layer, on this machine, for budgets in time.

Called by :mod:`dyvte.engine.calibrate`.
"""

from __future__ import annotations

from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from dyvte.decoding.policy import FixedExit, NoExit, Policy
from dyvte.engine.model import Batch, ChatModel
from dyvte.gates.exit import LearnedExit
from dyvte.gates.gate import ExitGates
from dyvte.timing import interleaved, seconds_of

NEVER, AT_ONCE, ASKED = "no exit", "exit after layer 0", "gates that never fire"


@torch.inference_mode()
def measure(chat: ChatModel, gates: ExitGates, batch: Batch, rounds: int = 7) -> dict[str, float]:
    """Median seconds of a batch's prefill without exit, with exit after layer 0, and with gates that never fire.

    The three take turns. The handle's policy is as before afterwards.
    """
    handle, batch = chat.handle, chat.place(batch)
    assert handle is not None
    policies: dict[str, Policy] = {NEVER: NoExit(), AT_ONCE: FixedExit(0), ASKED: LearnedExit(gates, 1.0)}

    def prefill(policy: Policy) -> float:
        handle.policy = policy
        return seconds_of(lambda: chat.prefill(batch, use_cache=True), chat.device)

    before = handle.policy
    tasks = {name: lambda policy=policy: prefill(policy) for name, policy in policies.items()}
    try:
        times = interleaved(tasks, rounds)
    finally:
        handle.policy = before
    return {name: median(values) for name, values in times.items()}


def by_exit_layer(seconds: dict[str, float], num_layers: int, batch: int) -> NDArray:
    """(L + 1,) milliseconds per sample with exit after each layer, gates included; the last is without exit.

    Every layer is taken to save the same: what exit after layer 0 saves, divided by the layers above it. A gate
    costs what all of them cost, divided by the layers.
    """
    never, at_once = seconds[NEVER], seconds[AT_ONCE]
    gate = max(0.0, seconds[ASKED] - never) / num_layers
    with_image = np.arange(num_layers) / max(num_layers - 1, 1)
    exits = at_once + (never - at_once) * with_image + gate * np.arange(1, num_layers + 1)
    return 1000 / batch * np.append(exits, never + gate * num_layers)
