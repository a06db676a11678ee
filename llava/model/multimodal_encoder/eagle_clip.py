"""Eagle's first tower: CLIP-L/14 at 336 pixels (its name says 448), all layers, without class token.

Names of weights are those of the released checkpoint, and must stay.

Called by :mod:`llava.model.multimodal_encoder.eagle_encoder`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPVisionEmbeddings

from llava.model.multimodal_encoder.tower import MapEncoder

RELEASED: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


class ClipEncoder(MapEncoder):
    """The class token leaves before the first norm, so that patches never see it; there is no final norm.

    Args:
        fields: of a ``CLIPVisionConfig``; those that are absent are the released tower's.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        config: Any = CLIPVisionConfig(**{**RELEASED, **fields})
        config._attn_implementation = "sdpa"
        self.image_size, self.channels = config.image_size, config.hidden_size
        # published as transformers 4 named CLIP: vision_model.*
        self.vision_tower = nn.ModuleDict({"vision_model": _VisionModel(config)})

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) -> (N, channels, H / patch, W / patch)"""
        states = self.vision_tower["vision_model"](pixels)
        return states.transpose(1, 2).unflatten(2, (math.isqrt(states.shape[1]), -1))


class _VisionModel(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = CLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(
            config.hidden_size, eps=config.layer_norm_eps
        )  # published, not used

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        states = patches + self.embeddings.position_embedding.weight[1:]
        return self.encoder(inputs_embeds=self.pre_layrnorm(states)).last_hidden_state
