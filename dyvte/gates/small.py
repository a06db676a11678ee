"""Gates with fewer weights than the paper's: factored by layer, or one gate shared by all layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LowRankGate(nn.Module):
    """``W2 . GELU(W1 . V . states)``: the paper's gate with its first matrix factored to a rank."""

    def __init__(self, input_size: int, width: int, rank: int):
        super().__init__()
        self.v = nn.Linear(input_size, rank, bias=False)
        self.w1 = nn.Linear(rank, width, bias=False)
        self.w2 = nn.Linear(width, 2, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """States (n, K * D) -> logits (n, 2)."""
        return self.w2(nn.functional.gelu(self.w1(self.v(states))))


class SharedGate(nn.Module):
    """``W2 . GELU(W1 . normalised states + e_l)``: one gate for all layers, told which layer it is at.

    Each state vector is divided by its root mean square, because the size of states grows with depth.
    """

    def __init__(self, input_size: int, width: int, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.w1 = nn.Linear(input_size, width, bias=False)
        self.w2 = nn.Linear(width, 2, bias=False)

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States (n, K * D), the layer's embedding (width,) -> logits (n, 2)."""
        parts = states.unflatten(-1, (-1, self.hidden_size))
        parts = nn.functional.rms_norm(parts.float(), (self.hidden_size,), eps=1e-6)
        return self.w2(nn.functional.gelu(self.w1(parts.flatten(1).to(states.dtype)) + embedding))


class LayerEmbedding(nn.Module):
    """What a shared gate adds for one layer, (width,); zero at first."""

    def __init__(self, width: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(width))
