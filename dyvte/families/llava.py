"""LLaVA-1.5 as transformers has it (``LlavaForConditionalGeneration``, models/llava/modeling_llava.py)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dyvte.families.base import Adapter, VisionLanguageModel, register_adapter


def _placeholder_mask(model: VisionLanguageModel, kwargs: dict[str, Any]) -> Tensor:
    """(B, S) bool: the placeholder ids, or their embeddings where ids are not given."""
    placeholder: int = model.config.image_token_id
    if kwargs.get("input_ids") is not None:
        return kwargs["input_ids"] == placeholder
    embeds = kwargs["inputs_embeds"]
    weight = model.get_input_embeddings().weight[placeholder].to(embeds)
    return (embeds == weight).all(-1)


register_adapter(
    "llava",
    Adapter(
        decoder=lambda model: model.model.language_model,
        vision=lambda model: (model.model.vision_tower, model.model.multi_modal_projector),
        visual_mask=_placeholder_mask,
        entry=lambda model: model.model,
    ),
)
