"""InternViT, the tower of InternVL-Chat (OpenGVLab/InternViT-6B-224px), under its published key names.

N images, T tokens (class token first, then patches row by row), D hidden size. Written here because transformers'
``InternVLVisionModel`` has other names and splits the fused query-key-value weights.

Called by :mod:`llava.model.multimodal_encoder.intern_encoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import CLIPMLP


@dataclass
class InternViTConfig:
    """Sizes as in InternViT's ``config.json``; the defaults are InternViT-6B-224px's."""

    hidden_size: int = 3200
    intermediate_size: int = 12800
    num_hidden_layers: int = 48
    num_attention_heads: int = 25
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    qkv_bias: bool = False
    qk_normalization: bool = True
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu"

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> InternViTConfig:
        """The known fields of a ``config.json``; others are left out."""
        return cls(**{field.name: described[field.name] for field in fields(cls) if field.name in described})


class InternViT(nn.Module):
    """Embeddings and blocks; there is no final norm."""

    def __init__(self, config: InternViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layers": blocks})

    def forward(self, pixels: Tensor, layers: int) -> Tensor:
        """Pixels (N, 3, H, W) -> the states after so many blocks, (N, T, D); the blocks above do not run."""
        states = self.embeddings(pixels)
        for block in list(self.encoder["layers"].children())[:layers]:
            states = block(states)
        return states


class Embeddings(nn.Module):
    """Patches and class token with their positions; the table is interpolated to the image's grid."""

    def __init__(self, config: InternViTConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.side = config.image_size // patch
        self.class_embedding = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch)
        self.position_embedding = nn.Parameter(torch.empty(1, self.side**2 + 1, width))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1 + patches, D)"""
        patches = self.patch_embedding(pixels)
        grid = patches.shape[2:]
        states = patches.flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(states), 1, -1)
        return torch.cat([first, states], 1) + self._positions(*grid).to(states.dtype)

    def _positions(self, rows: int, columns: int) -> Tensor:
        table = self.position_embedding
        if (rows, columns) == (self.side, self.side):
            return table
        grid = table[:, 1:].float().reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([table[:, :1].float(), grid.flatten(2).transpose(1, 2)], 1)


class Block(nn.Module):
    """Attention and MLP, each behind an RMSNorm and scaled per channel (``ls1``, ``ls2``)."""

    def __init__(self, config: InternViTConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attn = Attention(config)
        self.mlp = CLIPMLP(config)
        self.norm1 = nn.RMSNorm(width, eps)
        self.norm2 = nn.RMSNorm(width, eps)
        self.ls1 = nn.Parameter(torch.empty(width))
        self.ls2 = nn.Parameter(torch.empty(width))

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.attn(self.norm1(states)) * self.ls1
        return states + self.mlp(self.norm2(states)) * self.ls2


class Attention(nn.Module):
    """Full attention; queries and keys are normalized over all heads together, before they are split."""

    def __init__(self, config: InternViTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        normalized = config.qk_normalization
        self.q_norm = nn.RMSNorm(width, config.layer_norm_eps) if normalized else nn.Identity()
        self.k_norm = nn.RMSNorm(width, config.layer_norm_eps) if normalized else nn.Identity()

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = self.qkv(states).chunk(3, dim=-1)
        parts = [
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_norm(query), self.k_norm(key), value)
        ]
        return self.proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
