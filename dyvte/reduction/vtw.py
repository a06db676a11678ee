"""VTW, visual tokens withdrawal (arXiv:2405.05803): one exit layer for all samples, found by a search.

Registered in ``dyvte/methods.py``, its fields as settings; must agree with ``tests/reduction/plain.py``.
:mod:`dyvte.study.vtw_search` runs the search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from dyvte.decoding.attach import Handle
from dyvte.decoding.packed import PackedRow
from dyvte.decoding.policy import FixedExit, NoExit, Policy
from dyvte.decoding.trace import ExitTrace


@dataclass(frozen=True)
class VTW(Policy):
    """Layers 0..k-1 see the visual tokens, layers k.. do not: :class:`FixedExit` after layer ``k - 1``.

    Args:
        k: the first layer without visual tokens, 1 or more (the paper's for LLaVA-1.5-7B: 15); searched for by
            :func:`exit_divergences` and :func:`choose_layer`.
    """

    k: int = 15

    def check(self, num_layers: int, hidden_size: int) -> None:
        if not 1 <= self.k < num_layers:
            raise ValueError(f"VTW's k must be one of 1..{num_layers - 1}, got {self.k}")

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        return FixedExit(self.k - 1).edit(layer, row, trace)


@torch.no_grad()
def exit_divergences(handle: Handle, next_logits: Callable[[], Tensor], layers: Sequence[int]) -> Tensor:
    """Divergence of the next token's distribution when the visual tokens leave before each of ``layers``.

    Args:
        handle: of the model; its policy and traces are as before afterwards.
        next_logits: runs one batch of prompts through the model and returns the next token's logits, (B, vocabulary).
        layers: values of ``k``.

    Returns:
        (L, n) float64: for the n samples that exit, the Kullback-Leibler divergence of the distribution with exit
        from the one without, as the paper's code takes it, ``sum p_exit * (log p_exit - log p_full)``.
    """
    policy, rows = handle.policy, []
    try:
        with handle.collect() as traces:
            handle.policy = NoExit()
            full = next_logits().double().log_softmax(-1)
            for k in layers:
                handle.policy = VTW(k)
                left = next_logits().double().log_softmax(-1)
                exits = [layer is not None for layer in traces[-1].exit_layers]
                rows.append(
                    kl_div(full, left, reduction="none", log_target=True).sum(-1)[torch.tensor(exits)]
                )
    finally:
        handle.policy = policy
    return torch.stack(rows)


def choose_layer(divergences: Tensor, layers: Sequence[int], threshold: float = 0.003) -> int:
    """The first ``k`` whose mean divergence is at most ``threshold``.

    Args:
        divergences: (L, n), of :func:`exit_divergences`; batches side by side.
        layers: the L values of ``k``, ascending; the paper's code starts at 5.
        threshold: in the paper's code 0.003 for LLaVA-1.5-7B, 0.0005 for 13B.

    Raises:
        ValueError: there is no such layer.
    """
    means = divergences.mean(1)
    for k, mean in zip(layers, means.tolist(), strict=True):
        if mean <= threshold:
            return k
    raise ValueError(
        f"no layer's mean divergence is at most {threshold}; the smallest is {means.min().item():.3g}, "
        "raise the threshold or offer later layers"
    )
