"""DyVTE itself: the image leaves after the first layer whose gate says so.

Called from most of the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from dyvte.decoding.attention.interface import AttentionInputs
from dyvte.decoding.packed import Layout, PackedRow
from dyvte.decoding.policy import Policy, Probe, exit_sequences
from dyvte.decoding.trace import ExitTrace
from dyvte.gates.attention_states import attention_states
from dyvte.gates.gate import ExitGates
from dyvte.gates.states import Means, gather_states, means_of, reads_attention


@dataclass(frozen=True, eq=False)
class LearnedExit(Policy):
    """Each sample exits after the first layer whose gate gives an exit probability above the threshold.

    Args:
        gates: trained gates that fit the model.
        threshold: in [0, 1]; 0.5 compares the two logits, as the paper does; 1 never exits. By default what the gates
            were calibrated to, else 0.5.
        first_layer, last_layer: gates outside this range (zero-based, inclusive) are not asked.

    Raises:
        ValueError: the threshold or the range makes no sense.
    """

    gates: ExitGates
    threshold: float | None = None
    first_layer: int = 0
    last_layer: int | None = None

    def __post_init__(self) -> None:
        if self.threshold is None:
            object.__setattr__(self, "threshold", self.gates.threshold)
        if not 0 <= cast(float, self.threshold) <= 1:  # a NaN is not
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold}")
        first, last, layers = self.first_layer, self.last_layer, self.gates.num_layers
        if not 0 <= first <= (layers - 1 if last is None else last) < layers:
            raise ValueError(
                f"first_layer {first} and last_layer {last} must be a range within 0..{layers - 1}"
            )

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Raise ValueError when the gates are those of a model of other sizes."""
        self.gates.check(num_layers, hidden_size)

    def check_model(self, config: PretrainedConfig) -> None:
        """Raise ValueError when the gates are known to be those of another model."""
        self.gates.check_model(config)

    def place(self, devices: Sequence[torch.device]) -> None:
        """Move each gate to its layer's device."""
        self.gates.place(devices)

    def observes(self, layer: int, layout: Layout) -> bool:
        """Whether the layer's gate reads attention."""
        return reads_attention(self.gates.states) and self._asks(layer, layout)

    def observe(self, layer: int, inputs: AttentionInputs, trace: ExitTrace) -> None:
        """Keep what the gate needs of the layer's attention."""
        trace.scratch[self] = attention_states(inputs, self.gates.hidden_size)

    def probes(self, layout: Layout) -> Sequence[Probe]:
        """The exit probabilities of the sequences that may exit; not of gates that read attention."""
        gates = self.gates
        if reads_attention(gates.states) or not layout.may_exit:
            return ()

        def compute(layer: int, hidden: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
            means = Means(*inputs).of(hidden)[:-1]  # the last one is that of the filling tokens
            return gates.exit_probability(layer, means.view(-1, len(gates.states) * hidden.shape[-1]))

        means = means_of(layout, gates.states, filled=True)
        return (
            Probe(
                owner=self,
                weights=gates,
                inputs=(means.tokens, means.order, means.starts, means.counts),
                answers=len(layout.may_exit),
                asks=lambda layer: self._asks(layer, layout),
                compute=compute,
            ),
        )

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """Ask the layer's gate about every sample whose image is still there; drop the images it lets go."""
        if not self._asks(layer, row.layout):
            return row
        sequences = row.layout.may_exit
        probabilities = trace.answer(self, row.layout)
        if probabilities is None:
            states = gather_states(row, self.gates.states, trace.scratch.pop(self, None))
            probabilities = self.gates.exit_probability(layer, states)
        samples = [row.layout.samples[sequence] for sequence in sequences]
        trace.record_gate(layer, samples, probabilities, self.gates.flops)
        # the threshold in the probabilities' precision, so that comparing on the host is comparing on the device
        limit = float(np.float32(cast(float, self.threshold)))
        # a NaN compares as False: it never exits. Reading the probabilities makes the host wait for the device.
        pairs = zip(sequences, probabilities.tolist(), strict=True)
        leaving = [sequence for sequence, probability in pairs if probability > limit]
        return exit_sequences(row, leaving, layer, trace)

    def _asks(self, layer: int, layout: Layout) -> bool:
        """Whether the layer's gate takes part, and some sample has an image that may leave."""
        in_range = self.first_layer <= layer and (self.last_layer is None or layer <= self.last_layer)
        return in_range and self.gates.has_gate(layer) and bool(layout.may_exit)
