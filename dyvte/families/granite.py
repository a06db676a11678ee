"""Granite 4 Vision, Granite Docling, HyperCLOVA X: scaled embeddings, and features added to visual tokens in layers.

transformers: ``models/{granite4_vision,granite_docling,hyperclovax_vision_v2}``; the last adds no features.
Registered by importing ``dyvte.families``; logits must equal those of transformers.

Registered in ``dyvte/families/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dyvte.families.base import family
from dyvte.families.qwen_vl import DeepstackStack
from dyvte.families.stack import Stack, TokenFeatures

if TYPE_CHECKING:
    from dyvte.decoding.packed import Layout


class GraniteStack(Stack):
    """The loop replaces the decoder's forward, in which transformers scales embeddings and adds features."""

    def embed(self, embeds: Tensor) -> Tensor:
        decoder: Any = self.decoder
        return embeds * decoder.embedding_multiplier

    def extras(self, kwargs: Mapping[str, Any], embeds: Tensor) -> TokenFeatures | None:
        features = kwargs.get("deepstack_features")
        return None if features is None else TokenFeatures(kwargs["vision_mask"].squeeze(-1), features)

    def before(self, index: int, hidden: Tensor, layout: Layout) -> Tensor:
        extras: TokenFeatures | None = layout.extras
        return hidden if extras is None else extras.add(index, hidden, layout)


class DoclingStack(DeepstackStack):
    """Features are added as in Qwen3-VL."""

    embed = GraniteStack.embed


family(
    "granite4_vision",
    projector=("model.layerwise_projectors", "model.spatial_projectors"),
    stack=GraniteStack,
    logits=lambda model, logits: logits / model.config.get_text_config().logits_scaling,
)
family(
    "granite_docling",
    "model.text_model",
    "model.vision_model",
    projector=None,
    stack=DoclingStack,
    logits=lambda model, logits: logits / model.config.get_text_config().logits_scaling,
)
family(
    "hyperclovax_vision_v2",
    tower="model.vision_model",
    projector="model.projector",
    ids=("image_token_id", "video_token_id"),
    stack=GraniteStack,
    logits=lambda model, logits: logits * model.config.get_text_config().logits_scaling,
)
