"""Several methods in one prefill, such as DyVTE on top of FastV (Table 4 of the DyVTE paper)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dyvte.decoding.packed import Layout, PackedRow
from dyvte.decoding.policy import Entrance, Observer, Policy, ValueObserver
from dyvte.decoding.trace import ExitTrace


@dataclass(frozen=True)
class Combine:
    """The policies one after another, before layer 0 and after each layer; each sees what the ones before it left.

    Args:
        policies: in the order in which they act.

    Raises:
        ValueError: when there is none, or one stands there twice.
    """

    policies: tuple[Policy, ...]

    def __post_init__(self) -> None:
        if not self.policies or len(set(self.policies)) < len(self.policies):
            raise ValueError(f"Combine takes one or more different policies, got {self.policies}")

    @property
    def ignores_text(self) -> bool:
        """Whether all of them do; see :class:`Policy`."""
        return all(getattr(policy, "ignores_text", False) for policy in self.policies)

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Raise ValueError when one of the policies does not fit."""
        for policy in self.policies:
            policy.check(num_layers, hidden_size)

    def enter(self, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """The row after the edits of all policies that act before layer 0."""
        for policy in self.policies:
            if isinstance(policy, Entrance):
                row = policy.enter(row, trace)
        return row

    def observe(self, layer: int, query: Tensor, key: Tensor, layout: Layout, trace: ExitTrace) -> None:
        """Let all policies look that do."""
        for policy in self.policies:
            if isinstance(policy, Observer):
                policy.observe(layer, query, key, layout, trace)

    def observe_values(self, layer: int, value: Tensor, layout: Layout, trace: ExitTrace) -> None:
        """Let all policies look that do."""
        for policy in self.policies:
            if isinstance(policy, ValueObserver):
                policy.observe_values(layer, value, layout, trace)

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """The row after the edits of all policies."""
        for policy in self.policies:
            row = policy.edit(layer, row, trace)
        return row
