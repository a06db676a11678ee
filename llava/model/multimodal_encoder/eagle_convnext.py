"""Eagle's second tower: ConvNeXt-XXL under timm's names, whose scale per channel is called ``weight``.

Written here because transformers' ``ConvNextModel`` fixes another epsilon and norms the last stage.

Called by :mod:`llava.model.multimodal_encoder.eagle_encoder` and
:mod:`llava.model.multimodal_encoder.eagle_transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.model.multimodal_encoder.tower import MapEncoder, known_fields

RELEASED: dict[str, Any] = {
    "depths": (3, 4, 30, 3),
    "dims": (384, 768, 1536, 3072),
    "norm_eps": 1e-5,
    "ls_init_value": 1e-6,
    "kernel_size": 7,
    "mlp_ratio": 4,
}


class ConvNextEncoder(MapEncoder):
    """The last stage as it is, (N, channels, H / 32, W / 32); the checkpoint's classification head is left out."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        sizes = known_fields(fields, RELEASED)
        self.vision_tower, self.channels = ConvNext(**sizes), sizes["dims"][-1]


class ConvNext(nn.Module):
    def __init__(self, depths, dims, norm_eps, ls_init_value, kernel_size, mlp_ratio) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, stride=4), ChannelNorm(dims[0], norm_eps))
        self.stages = nn.ModuleList()
        for place, (depth, width) in enumerate(zip(depths, dims, strict=True)):
            before = dims[place - 1]
            halved = (ChannelNorm(before, norm_eps), nn.Conv2d(before, width, 2, stride=2)) if place else ()
            inner, scaled = int(mlp_ratio * width), bool(ls_init_value)
            blocks = (Block(width, norm_eps, scaled, kernel_size, inner) for _ in range(depth))
            stage = {"downsample": nn.Sequential(*halved), "blocks": nn.Sequential(*blocks)}
            self.stages.append(nn.ModuleDict(stage))

    def forward(self, states: Tensor) -> Tensor:
        states = self.stem(states)
        for stage in self.stages:
            for part in stage.children():  # downsample, which the first stage has none of, and blocks
                states = part(states)
        return states


class Block(nn.Module):
    """A depthwise convolution, then an MLP per place; ``weight`` scales its channels."""

    def __init__(self, width: int, eps: float, scaled: bool, kernel: int, inner: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.weight = nn.Parameter(torch.empty(width)) if scaled else None

    def forward(self, states: Tensor) -> Tensor:
        inner = self.norm(self.conv_dw(states).permute(0, 2, 3, 1))
        inner = self.mlp["fc2"](F.gelu(self.mlp["fc1"](inner)))
        if self.weight is not None:
            inner = inner * self.weight
        return states + inner.permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
