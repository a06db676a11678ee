"""Several methods in one prefill, such as DyVTE with FastV (Table 4 of the paper); made by :mod:`dyvte.methods`.

Every hook of :class:`~dyvte.decoding.policy.Policy` must be passed on here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from dyvte.decoding.attention.interface import AttentionInputs
from dyvte.decoding.packed import Layout, PackedRow
from dyvte.decoding.policy import Policy, Probe
from dyvte.decoding.trace import ExitTrace


@dataclass(frozen=True)
class Combine(Policy):
    """The policies one after another, before layer 0 and after each layer; each gets the row from the one before.

    Args:
        policies: in the order in which they act; one at least, and none twice.
    """

    policies: tuple[Policy, ...]

    def __post_init__(self) -> None:
        if not self.policies or len(set(self.policies)) < len(self.policies):
            raise ValueError(f"Combine takes one or more different policies, got {self.policies}")

    def check(self, num_layers: int, hidden_size: int) -> None:
        for policy in self.policies:
            policy.check(num_layers, hidden_size)

    def check_model(self, config: PretrainedConfig) -> None:
        for policy in self.policies:
            policy.check_model(config)

    def place(self, devices: Sequence[torch.device]) -> None:
        for policy in self.policies:
            policy.place(devices)

    def enter(self, row: PackedRow, trace: ExitTrace) -> PackedRow:
        for policy in self.policies:
            row = policy.enter(row, trace)
        return row

    def observes(self, layer: int, layout: Layout) -> bool:
        return any(policy.observes(layer, layout) for policy in self.policies)

    def observe(self, layer: int, inputs: AttentionInputs, trace: ExitTrace) -> None:
        for policy in self.policies:
            if policy.observes(layer, inputs.layout):
                policy.observe(layer, inputs, trace)

    def probes(self, layout: Layout) -> Sequence[Probe]:
        """Those of all policies."""
        return [probe for policy in self.policies for probe in policy.probes(layout)]

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        for policy in self.policies:
            row = policy.edit(layer, row, trace)
        return row
