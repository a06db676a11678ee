"""DyVTE itself: the first layer whose gate says so lets the image leave."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dyvte.decoding.packed import Layout, PackedRow
from dyvte.decoding.policy import Answer, exit_segments
from dyvte.decoding.trace import ExitTrace
from dyvte.gates.attention_states import attention_states
from dyvte.gates.gate import ExitGates
from dyvte.gates.states import gather_states, reads_attention, state_index


@dataclass(frozen=True, eq=False)
class LearnedExit:
    """Each sample exits after the first layer whose gate gives an exit probability above ``threshold``.

    Args:
        gates: trained gates that fit the model.
        threshold: in [0, 1]; 0.5 compares the two logits, as the paper does; 1 never exits. By default what the gates
            were calibrated to, else 0.5.
        first_layer, last_layer: gates outside this range (zero-based, inclusive) are not asked.
        ahead: launch the next layer before a gate's decision is read. On an accelerator this hides the read where
            nobody leaves, and costs one more layer where somebody does, so it pays where gates seldom fire.

    Raises:
        ValueError: when the threshold or the range makes no sense.
    """

    gates: ExitGates
    threshold: float = None  # type: ignore[assignment] - filled in from the gates
    first_layer: int = 0
    last_layer: int | None = None
    ahead: bool = False
    ignores_text = True

    def __post_init__(self) -> None:
        if self.threshold is None:
            object.__setattr__(self, "threshold", self.gates.threshold)
        if not (0 <= self.threshold <= 1) or math.isnan(self.threshold):
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold}")
        last = self.gates.num_layers - 1 if self.last_layer is None else self.last_layer
        if not 0 <= self.first_layer <= last < self.gates.num_layers:
            raise ValueError(
                f"first_layer {self.first_layer} and last_layer {last} must be an ascending range within "
                f"0..{self.gates.num_layers - 1}"
            )

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Raise ValueError when the gates are those of another model."""
        self.gates.check(num_layers, hidden_size)

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """Ask the layer's gate about every sample whose image is still there; drop the images it lets go."""
        answer = self.ask(layer, row, trace)
        return row if answer is None else self.obey(layer, row, answer, trace)

    @torch.no_grad()
    def ask(self, layer: int, row: PackedRow, trace: ExitTrace) -> Answer | None:
        """Run the layer's gate on every sample whose image is still there; None where there is no gate or sample."""
        if not self._asks(layer):
            return None
        segments = state_index(row.layout).segments
        if not segments:
            return None
        states = gather_states(row, self.gates.states, trace.scratch.get("attention"))
        probabilities = self.gates.exit_probability(layer, states)
        samples = [row.layout.samples[segment] for segment in segments]
        trace.record_gate(layer, samples, probabilities, self.gates.flops)
        return Answer(probabilities > self.threshold)  # a NaN compares as False: it never exits

    def obey(self, layer: int, row: PackedRow, answer: Answer, trace: ExitTrace) -> PackedRow:
        """Drop the images that the gate lets go."""
        leaving = [False] * len(row.layout.lengths)
        for segment, decision in zip(state_index(row.layout).segments, answer.read(), strict=True):
            leaving[segment] = decision
        return exit_segments(row, leaving, layer, trace)

    def observe(self, layer: int, query: Tensor, key: Tensor, layout: Layout, trace: ExitTrace) -> None:
        """Keep what gates that read attention need of it; others cost nothing here."""
        if reads_attention(self.gates.states) and self._asks(layer):
            trace.scratch["attention"] = attention_states(query, key, layout, self.gates.hidden_size)

    def _asks(self, layer: int) -> bool:
        """Whether the gate of this layer takes part."""
        last = self.gates.num_layers - 1 if self.last_layer is None else self.last_layer
        return self.first_layer <= layer <= last and self.gates.has_gate(layer)
