"""The gates: one small MLP per decoder layer that says whether the image may leave (paper, Eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dyvte.gates.states import PAPER_STATES, check_states


class ExitGate(nn.Module):
    """``W2 . GELU(W1 . states)`` without biases; row 0 of the logits is keep, row 1 is exit.

    The names ``w1`` and ``w2`` are the paper's keys.
    """

    def __init__(self, input_size: int, width: int):
        super().__init__()
        self.w1 = nn.Linear(input_size, width, bias=False)
        self.w2 = nn.Linear(width, 2, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """States (n, K * D) -> logits (n, 2)."""
        return self.w2(nn.functional.gelu(self.w1(states)))


class ExitGates(nn.Module):
    """One gate per decoder layer, with the choice of states they look at.

    Args:
        num_layers: decoder layers.
        hidden_size: the decoder's hidden size.
        width: hidden units of each gate (paper: 2048).
        states: which states, in this order; see :data:`dyvte.gates.states.STATES`.

    Attributes:
        calibration: how a threshold was chosen for these gates (see :mod:`dyvte.gates.calibration`); empty when
            none was. Saved with the gates.

    Raises:
        ValueError: when a size is not positive or the states are not known ones.
    """

    def __init__(
        self, num_layers: int, hidden_size: int, width: int = 2048, states: Sequence[str] = PAPER_STATES
    ):
        super().__init__()
        if min(num_layers, hidden_size, width) < 1:
            raise ValueError(
                f"sizes must be positive, got {num_layers} layers, {hidden_size} hidden, {width} wide"
            )
        self.num_layers, self.hidden_size, self.width = num_layers, hidden_size, width
        self.states = check_states(states)
        self.calibration: dict[str, Any] = {}
        self.layers = nn.ModuleList(
            ExitGate(len(self.states) * hidden_size, width) for _ in range(num_layers)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, as the paper's code initialises them."""
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter)

    def forward(self, layer: int, states: Tensor) -> Tensor:
        """Logits (n, 2) of one layer's gate for states (n, K * D) of any float dtype."""
        gate = self.layers[layer]
        return gate(states.to(gate.w1.weight.dtype))

    def exit_probability(self, layer: int, states: Tensor) -> Tensor:
        """Exit probability (n,) in float32 of one layer's gate."""
        return self(layer, states).float().softmax(-1)[:, 1]

    @property
    def threshold(self) -> float:
        """The calibrated threshold; 0.5, the paper's, where there is none."""
        return self.calibration.get("threshold", 0.5)

    @property
    def flops(self) -> int:
        """FLOPs (2 x multiply-accumulate) of one gate for one sample."""
        return 2 * self.width * (len(self.states) * self.hidden_size + 2)

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Raise ValueError, naming both values, when the gates do not fit a decoder of this depth and width."""
        if self.num_layers != num_layers:
            raise ValueError(
                f"these gates are for a model of {self.num_layers} layers, this one has {num_layers}"
            )
        if self.hidden_size != hidden_size:
            raise ValueError(
                f"these gates are for a model of hidden size {self.hidden_size}, this one has {hidden_size}"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``gates.safetensors`` and ``gates.json``."""
        from dyvte.gates.files import save_gates

        save_gates(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype | None = None) -> ExitGates:
        """Read gates from our own files, or from a checkpoint that holds ``visual_gates_router.*`` keys.

        Args:
            dtype: float type to convert to; by default that of the file.

        Raises:
            FileNotFoundError: when the folder holds no gates.
            ValueError: when the file does not fit its description, or holds values that are not finite.
        """
        from dyvte.gates.files import load_gates

        return load_gates(folder, dtype)
