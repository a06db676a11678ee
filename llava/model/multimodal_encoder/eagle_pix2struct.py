"""Eagle's fifth tower: Pix2Struct-L's encoder (transformers'), with its own preprocessing of CLIP's pixels.

Called by :mod:`llava.model.multimodal_encoder.eagle_encoder`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Pix2StructVisionConfig, Pix2StructVisionModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llava.model.multimodal_encoder.tower import MapEncoder

RELEASED: dict[str, Any] = {
    "hidden_size": 1536,
    "patch_embed_hidden_size": 768,
    "d_ff": 3968,
    "d_kv": 64,
    "num_attention_heads": 24,
    "num_hidden_layers": 18,
    "seq_len": 4096,
}
PATCH = 16
SIDE = math.isqrt(2048)
"""Patches along a side: at most 2048 in all, and images are square. The original pads to 2048 and masks that."""


class Pix2StructEncoder(MapEncoder):
    """The map after the final norm.

    Args:
        fields: of a ``Pix2StructVisionConfig``; those that are absent are the released tower's.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        config = Pix2StructVisionConfig(**{**RELEASED, **fields})
        self.channels = config.hidden_size
        self.vision_tower = Pix2StructVisionModel(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """CLIP-normalized pixels (N, 3, H, W), square -> (N, channels, 45, 45)"""
        tower = self.vision_tower
        states = tower.embeddings(flattened_patches(pixels).to(pixels.dtype))
        states = tower.layernorm(tower.encoder(states, attention_mask=None)[0])
        return states.transpose(1, 2).unflatten(2, (SIDE, SIDE))


def flattened_patches(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 45 * 45, 2 + 768) float32: row and column from 1, then the patch in order (y, x, color).

    Each image is standardized over all its values (population deviation), then resized.
    """
    mean, std = (
        torch.tensor(part, device=pixels.device)[:, None, None]
        for part in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )
    images = (pixels.float() * std + mean) * 255
    dims = (1, 2, 3)
    floor = images[0].numel() ** -0.5
    deviation = images.std(dims, correction=0, keepdim=True).clamp(min=floor)
    images = (images - images.mean(dims, keepdim=True)) / deviation
    size = (SIDE * PATCH, SIDE * PATCH)
    images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    patches = images.unflatten(3, (SIDE, PATCH)).unflatten(2, (SIDE, PATCH))  # (N, 3, row, y, column, x)
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    numbers = torch.arange(1, SIDE + 1, device=pixels.device, dtype=torch.float32)
    places = torch.cartesian_prod(numbers, numbers).expand(len(pixels), -1, -1)
    return torch.cat([places, patches], -1)
