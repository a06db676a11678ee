"""Eagle's fourth tower: EVA-02-L trained for detection, under its published names; transformers has none.

N images, a map of H x W patches, D channels.

Called by :mod:`llava.model.multimodal_encoder.eagle_encoder`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.model.multimodal_encoder.tower import MapEncoder, known_fields

RELEASED: dict[str, Any] = {
    "hidden_dim": 1024,
    "depth": 24,
    "num_heads": 16,
    "patch_size": 16,
    "window_size": 16,
    "window_block_indexes": tuple(index for index in range(24) if index % 3 != 2),
    "mlp_ratio": 4 * 2 / 3,
    "pretrain_img_size": 224,
    "pt_hw_seq_len": 16,
    "norm_eps": 1e-6,
    "image_size": 1024,
}


class EvaEncoder(MapEncoder):
    """The map of the last block, (N, channels, H / patch, W / patch)."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        sizes = known_fields(fields, RELEASED)
        self.image_size, self.channels = sizes["image_size"], sizes["hidden_dim"]
        self.vision_tower = EvaViT(sizes)


class EvaViT(nn.Module):
    """Windowed and global attention, rotary positions of two axes beside the learned table, and no final norm.

    Checkpoints hold the rotary tables, once or once per block; they are computed here instead.

    Args:
        sizes: as in :data:`RELEASED`.
    """

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width, heads, patch = sizes["hidden_dim"], sizes["num_heads"], sizes["patch_size"]
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.side = sizes["pretrain_img_size"] // patch
        self.pos_embed = nn.Parameter(torch.empty(1, self.side**2 + 1, width))
        self.head_size, self.rotary_side = width // heads, sizes["pt_hw_seq_len"]
        self.blocks = nn.ModuleList()
        for index in range(sizes["depth"]):
            window = sizes["window_size"] if index in sizes["window_block_indexes"] else 0
            self.blocks.append(
                Block(width, heads, int(width * sizes["mlp_ratio"]), window, sizes["norm_eps"])
            )

    def forward(self, pixels: Tensor) -> Tensor:
        states = self.patch_embed["proj"](pixels)
        states = (states + self._positions(states.shape[2:]).to(states.dtype)).permute(0, 2, 3, 1)
        tables: dict[int, tuple[Tensor, Tensor]] = {}
        for block in self.blocks:
            assert isinstance(block, Block)
            side = block.window or states.shape[1]
            if side not in tables:
                tables[side] = rotary_table(side, self.rotary_side, self.head_size, states)
            states = block(states, tables[side])
        return states.permute(0, 3, 1, 2)

    def _positions(self, grid: torch.Size) -> Tensor:
        """The learned table without its class token, (1, D, H, W), brought to the grid."""
        table = self.pos_embed[:, 1:].float().transpose(1, 2).unflatten(2, (self.side, self.side))
        return F.interpolate(table, size=tuple(grid), mode="bicubic", align_corners=False)


class Block(nn.Module):
    """Attention, in windows unless ``window`` is 0, and a gated MLP; each behind a norm."""

    def __init__(self, width: int, heads: int, inner: int, window: int, eps: float) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = GatedMlp(width, inner, eps)

    def forward(self, states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """(N, H, W, D) -> the same"""
        rows, columns = states.shape[1:3]
        normed = self.norm1(states)
        windows = split(normed, self.window) if self.window else normed
        mixed = self.attn(windows.flatten(1, 2), rotary).unflatten(1, windows.shape[1:3])
        mixed = join(mixed, rows, columns) if self.window else mixed
        states = states + mixed
        return states + self.mlp(self.norm2(states))


class Attention(nn.Module):
    """Queries and values have a bias, kept beside their weights; keys have none."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)

    def forward(self, states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """(windows, T, D) -> the same"""
        parts = (self.q_proj(states) + self.q_bias, self.k_proj(states), self.v_proj(states) + self.v_bias)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(rotate(query, *rotary), rotate(key, *rotary), value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class GatedMlp(nn.Module):
    """SwiGLU with a norm on its inner states."""

    def __init__(self, width: int, inner: int, eps: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, inner)
        self.w2 = nn.Linear(width, inner)
        self.w3 = nn.Linear(inner, width)
        self.ffn_ln = nn.LayerNorm(inner, eps)

    def forward(self, states: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(states)) * self.w2(states)))


def split(states: Tensor, window: int) -> Tensor:
    """(N, H, W, D) -> (N * windows, window, window, D), with zeros below and to the right where none fits."""
    rows, columns = states.shape[1:3]
    states = F.pad(states, (0, 0, 0, -columns % window, 0, -rows % window))
    states = states.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return states.transpose(2, 3).flatten(0, 2)


def join(windows: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of :func:`split`."""
    window = windows.shape[1]
    down, across = math.ceil(rows / window), math.ceil(columns / window)
    states = windows.unflatten(0, (-1, down, across)).transpose(2, 3)
    return states.flatten(3, 4).flatten(1, 2)[:, :rows, :columns]


def rotary_table(side: int, pretrained_side: int, head_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (side * side, head_size) of a square map; half of a head turns with rows, half with columns.

    Positions are stretched to ``pretrained_side``; each frequency belongs to two neighboring channels.
    """
    half = head_size // 2
    frequencies = 10000 ** -(torch.arange(0, half, 2, device=like.device, dtype=torch.float32) / half)
    positions = torch.arange(side, device=like.device, dtype=torch.float32) / side * pretrained_side
    angles = (positions[:, None] * frequencies).repeat_interleave(2, -1)
    rows, columns = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
    angles = torch.cat([rows, columns], -1).flatten(0, 1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn neighboring channels (2i, 2i + 1) of (..., T, head_size)."""
    first, second = states.unflatten(-1, (-1, 2)).unbind(-1)
    return states * cosines + torch.stack([-second, first], -1).flatten(-2) * sines
