"""What may happen between two decoder layers. The loop knows no method; a method knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dyvte.decoding.packed import Layout, PackedRow, drop_visual
from dyvte.decoding.trace import ExitTrace


class Policy(Protocol):
    """Edits the packed row between layers, in prefill only.

    A policy keeps no state of a run: what it decides is written to the ``trace``, and read from it.

    A policy with an attribute ``ignores_text = True`` says that rows without visual tokens pass it unchanged, and
    that it need not see them: only then may their layers be replayed from graphs, without asking it.
    """

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Raise ValueError when the policy does not fit a decoder of this depth and width."""

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """The row that enters layer ``layer + 1``, given the states after ``layer``."""
        ...


@runtime_checkable
class Observer(Protocol):
    """A policy that also looks into attention: it has ``observe`` beside :class:`Policy`'s methods."""

    def observe(self, layer: int, query: Tensor, key: Tensor, layout: Layout, trace: ExitTrace) -> None:
        """Called once per layer of a prefill, before ``edit``, with what the layer's attention works on.

        Args:
            layer: zero-based.
            query: (1, heads, T, head_dim), key: (1, kv_heads, T, head_dim), both after rotary embedding.
            layout: the row's tokens.
            trace: ``trace.scratch`` takes what ``edit`` needs of it.
        """


@runtime_checkable
class ValueObserver(Protocol):
    """A policy that also looks at what attention takes from each token."""

    def observe_values(self, layer: int, value: Tensor, layout: Layout, trace: ExitTrace) -> None:
        """Called after ``observe`` with the values of the same layer, (1, kv_heads, T, head_dim)."""


@runtime_checkable
class Entrance(Protocol):
    """A policy that also edits the row before the first layer: it has ``enter`` beside :class:`Policy`'s methods."""

    def enter(self, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """The row that enters layer 0, given the embeddings."""
        ...


@runtime_checkable
class LookingAhead(Protocol):
    """A policy whose decisions may be read late: the loop launches the next layer for everyone before it reads them.

    That hides the wait for the device where nobody leaves; where somebody does, the next layer is computed again.
    ``edit`` is ``obey`` of what ``ask`` gave.
    """

    ahead: bool

    def ask(self, layer: int, row: PackedRow, trace: ExitTrace) -> Answer | None:
        """Launch what decides after ``layer``; None where nothing is to be decided."""
        ...

    def obey(self, layer: int, row: PackedRow, answer: Answer, trace: ExitTrace) -> PackedRow:
        """Wait for the decisions, and act on them."""
        ...


class Answer:
    """Decisions (n,) bool on their way to the host."""

    def __init__(self, decisions: Tensor):
        self._event = None
        self._decisions = decisions
        if decisions.is_cuda:
            self._decisions = decisions.to("cpu", non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(decisions.device))

    def read(self) -> list[bool]:
        """The decisions, as soon as the device has made them."""
        if self._event is not None:
            self._event.synchronize()
        return self._decisions.tolist()


@dataclass(frozen=True)
class NoExit:
    """The baseline: visual tokens stay to the last layer."""

    ignores_text = True

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Fits every decoder."""

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """The row, unchanged."""
        return row


@dataclass(frozen=True)
class FixedExit:
    """All samples exit after ``layer`` (zero-based): the paper's manual exit (Fig. 4), and VTW (2405.05803)."""

    layer: int
    ignores_text = True

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Raise ValueError when the decoder has no such layer."""
        if not 0 <= self.layer < num_layers:
            raise ValueError(f"exit layer {self.layer} is not one of the model's layers 0..{num_layers - 1}")

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """Drop the visual tokens of every sample that can do without them, after the chosen layer."""
        return row if layer != self.layer else exit_segments(row, list(row.layout.can_exit), layer, trace)


def exit_segments(row: PackedRow, leaving: list[bool], layer: int, trace: ExitTrace) -> PackedRow:
    """Drop the visual tokens of the ``leaving`` segments and note the exits."""
    if not any(leaving):
        return row
    trace.record_exit(layer, [s for s, gone in zip(row.layout.samples, leaving, strict=True) if gone])
    return drop_visual(row, leaving)
