"""Granite 4 Vision, Granite Docling, HyperCLOVA X: scaled embeddings, and features added to visual tokens in layers.

transformers: ``models/{granite4_vision,granite_docling,hyperclovax_vision_v2}``; the last adds no features.

Registered in ``dyvte/families/__init__.py``; logits must equal those of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dyvte.families.base import WITH_VIDEO, family
from dyvte.families.qwen_vl import DeepstackStack
from dyvte.families.stack import TokenFeatures


class GraniteStack(DeepstackStack):
    """The loop replaces the decoder's forward, in which transformers scales embeddings and adds features, before the
    layers that it names.
    """

    def embed(self, embeds: Tensor) -> Tensor:
        decoder: Any = self.decoder
        return embeds * decoder.embedding_multiplier

    def extras(self, kwargs: Mapping[str, Any], embeds: Tensor) -> TokenFeatures | None:
        features = kwargs.get("deepstack_features")
        return None if features is None else TokenFeatures(kwargs["vision_mask"].squeeze(-1), features)


class DoclingStack(DeepstackStack):
    """Features are added as in Qwen3-VL."""

    embed = GraniteStack.embed


def divided(model: Any, logits: Tensor) -> Tensor:
    """Logits over the text config's ``logits_scaling``."""
    return logits / model.config.get_text_config().logits_scaling


family(
    "granite4_vision",
    projector=("model.layerwise_projectors", "model.spatial_projectors"),
    stack=GraniteStack,
    logits=divided,
)
family("granite_docling", "model.text_model", "model.vision_model", None, stack=DoclingStack, logits=divided)
family(
    "hyperclovax_vision_v2",
    tower="model.vision_model",
    projector="model.projector",
    ids=WITH_VIDEO,
    stack=GraniteStack,
    logits=lambda model, logits: logits * model.config.get_text_config().logits_scaling,
)
