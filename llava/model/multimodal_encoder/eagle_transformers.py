"""Eagle's first, third and fifth tower, of transformers' parts: CLIP-L, SAM-L's and Pix2Struct-L's encoders.

Names of weights are those of the released checkpoint, and must stay. The fields that each takes are those of
transformers' config; absent ones are the released tower's.

Called by :mod:`llava.model.multimodal_encoder.eagle_encoder`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, Pix2StructVisionConfig, Pix2StructVisionModel, SamVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPVisionEmbeddings
from transformers.models.sam.modeling_sam import SamVisionEncoder
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llava.model.multimodal_encoder.eagle_convnext import ChannelNorm
from llava.model.multimodal_encoder.tower import MapEncoder

CLIP: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SAM: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 1024,
    "patch_size": 16,
    "window_size": 14,
    "global_attn_indexes": (5, 11, 17, 23),
    "output_channels": 256,
    "mlp_dim": 4096,
}
PIX2STRUCT: dict[str, Any] = {
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
"""Pix2Struct's patches along a side: at most 2048 in all, and images are square. The original pads to 2048 and masks
that.
"""


class ClipEncoder(MapEncoder):
    """All layers of CLIP-L/14 at 336 pixels (its name says 448). The class token leaves before the first norm, so
    that patches never see it; there is no final norm.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        config: Any = CLIPVisionConfig(**{**CLIP, **fields})
        config._attn_implementation = "sdpa"
        self.image_size, self.channels = config.image_size, config.hidden_size
        # published as transformers 4 named CLIP: vision_model.*
        self.vision_tower = nn.ModuleDict({"vision_model": _ClipModel(config)})

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) -> (N, channels, H / patch, W / patch)"""
        states = self.vision_tower["vision_model"](pixels)
        return states.transpose(1, 2).unflatten(2, (math.isqrt(states.shape[1]), -1))


class _ClipModel(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(width, eps)
        self.encoder = CLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(width, eps)  # published, not used

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        states = patches + self.embeddings.position_embedding.weight[1:]
        return self.encoder(inputs_embeds=self.pre_layrnorm(states)).last_hidden_state


class SamEncoder(MapEncoder):
    """With a neck of one convolution; each 2 x 2 places of its map become one with four times the channels."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        config: Any = SamVisionConfig(**{**SAM, **fields})
        self.image_size, self.channels = config.image_size, 4 * config.output_channels
        self.vision_tower = SamVisionEncoder(config)
        self.vision_tower.add_module("neck", _Neck(config.hidden_size, config.output_channels))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, image_size, image_size) -> (N, channels, side, side), side = image_size / patch / 2"""
        return F.pixel_unshuffle(self.vision_tower(pixels).last_hidden_state, 2)


class _Neck(nn.Module):
    """(N, H, W, width) -> (N, channels, H, W)"""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, channels, kernel_size=1, bias=False)
        self.layer_norm1 = ChannelNorm(channels, eps=1e-6)

    def forward(self, states: Tensor) -> Tensor:
        return self.layer_norm1(self.conv1(states.permute(0, 3, 1, 2)))


class Pix2StructEncoder(MapEncoder):
    """The map after the final norm, from CLIP's pixels in a preprocessing of its own."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        config = Pix2StructVisionConfig(**{**PIX2STRUCT, **fields})
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
