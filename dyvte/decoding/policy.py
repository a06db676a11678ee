"""What may happen between two decoder layers. The loop knows no method; a method knows no model.

Called from most of the project.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from dyvte.decoding.attention.interface import AttentionInputs
from dyvte.decoding.packed import Layout, PackedRow, drop_visual
from dyvte.decoding.trace import ExitTrace


class Policy:
    """Edits the packed row between layers, in prefill only; this one changes nothing.

    A method is a subclass that overrides the hooks it needs, usually a frozen dataclass whose fields are its
    settings. The loop calls :meth:`enter` once, then for each layer :meth:`observe` (only where :meth:`observes` says
    so) and :meth:`edit`.

    A policy keeps no state of a run: it writes what it decides to the ``trace``. ``trace.scratch`` takes what one
    hook leaves for a later one. What it is given is there for the call only: a later layer may overwrite states, so a
    policy that keeps some copies them.

    A layer that is not observed may be replayed from a CUDA graph. What :meth:`edit` has to compute from the states
    can be recorded with it where the policy offers that as :meth:`probes`; all else that ``edit`` does runs between
    two replays, as it does between two layers.
    """

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Raise ValueError when the policy does not fit a decoder of this depth and width."""

    def check_model(self, config: PretrainedConfig) -> None:
        """Raise ValueError when the policy is known to belong to another model than the one of this config."""

    def place(self, devices: Sequence[torch.device]) -> None:
        """Move the policy's weights to ``devices``, one for each of the decoder's layers."""

    def enter(self, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """The row that enters layer 0, given the embeddings."""
        return row

    def observes(self, layer: int, layout: Layout) -> bool:
        """Whether :meth:`observe` is to be called for this layer; ``layout`` is of the tokens that enter it."""
        return False

    def observe(self, layer: int, inputs: AttentionInputs, trace: ExitTrace) -> None:
        """Look at what a layer's attention works on, before it runs."""

    def probes(self, layout: Layout) -> Sequence[Probe]:
        """What :meth:`edit` computes from the states of rows of this layout, where that can be recorded.

        What a probe gave, if it ran, :meth:`edit` finds by :meth:`ExitTrace.answer`.
        """
        return ()

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """The row that enters layer ``layer + 1``, given the states after ``layer``."""
        return row


@dataclass(frozen=True, eq=False)
class Probe:
    """A computation on the states after a layer that a policy decides by, in a form that can be recorded.

    Attributes:
        owner: the policy.
        weights: what it computes with. Probes of one kind of policy with the same weights, and inputs of the same
            shapes, share a recording.
        inputs: what it reads beside the states, made of the layout alone. The fewer shapes they have, the less is
            recorded.
        answers: how many numbers it gives.
        asks: whether it runs after a layer.
        compute: (layer, states (T, D), the inputs) -> (answers,) float32. The states may be followed by those of a
            filler, which it must not read. It runs on the device, without reading anything on the host.
    """

    owner: Policy
    weights: nn.Module
    inputs: tuple[Tensor, ...]
    answers: int
    asks: Callable[[int], bool]
    compute: Callable[[int, Tensor, tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class NoExit(Policy):
    """The baseline: visual tokens stay to the last layer."""


@dataclass(frozen=True)
class FixedExit(Policy):
    """All samples exit after ``layer`` (zero-based): the paper's manual exit (Fig. 4), and VTW (2405.05803)."""

    layer: int

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Raise ValueError when the decoder has no such layer."""
        if not 0 <= self.layer < num_layers:
            raise ValueError(f"exit layer {self.layer} is not one of the model's layers 0..{num_layers - 1}")

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """Drop the visual tokens of every sample that may lose them, after the chosen layer."""
        return exit_sequences(row, row.layout.may_exit, layer, trace) if layer == self.layer else row


def exit_sequences(row: PackedRow, leaving: Sequence[int], layer: int, trace: ExitTrace) -> PackedRow:
    """Drop the visual tokens of the ``leaving`` sequences and note the exits."""
    if not leaving:
        return row
    trace.record_exit(layer, [row.layout.samples[sequence] for sequence in leaving])
    return drop_visual(row, leaving)
