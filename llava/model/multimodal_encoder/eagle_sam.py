"""Eagle's third tower: SAM-L's image encoder (transformers') with a neck of one convolution.

Called by :mod:`llava.model.multimodal_encoder.eagle_encoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from llava.model.multimodal_encoder.eagle_convnext import ChannelNorm
from llava.model.multimodal_encoder.tower import MapEncoder

RELEASED: dict[str, Any] = {
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


class SamEncoder(MapEncoder):
    """Each 2 x 2 places of the neck's map become one with four times the channels.

    Args:
        fields: of a ``SamVisionConfig``; those that are absent are the released tower's.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        config: Any = SamVisionConfig(**{**RELEASED, **fields})
        self.image_size, self.channels = config.image_size, 4 * config.output_channels
        self.vision_tower = SamVisionEncoder(config)
        self.vision_tower.add_module("neck", Neck(config.hidden_size, config.output_channels))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, image_size, image_size) -> (N, channels, side, side), side = image_size / patch / 2"""
        return F.pixel_unshuffle(self.vision_tower(pixels).last_hidden_state, 2)


class Neck(nn.Module):
    """(N, H, W, width) -> (N, channels, H, W)"""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, channels, kernel_size=1, bias=False)
        self.layer_norm1 = ChannelNorm(channels, eps=1e-6)

    def forward(self, states: Tensor) -> Tensor:
        return self.layer_norm1(self.conv1(states.permute(0, 3, 1, 2)))
