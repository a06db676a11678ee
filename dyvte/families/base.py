"""Where a model family keeps its decoder, and how one learns which tokens are visual: one adapter per family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Adapter:
    """What ``attach`` must know of a model family.

    Attributes:
        decoder: model -> the Llama-like module with ``layers``, ``norm``, ``rotary_emb``, ``embed_tokens``.
        vision: model -> (vision tower, projector), for cost accounting; None where absent.
        visual_mask: (model, keyword arguments of the module below) -> (B, S) bool; None where the model itself
            hands ``visual_mask`` to its decoder.
        entry: model -> the module whose keyword arguments ``visual_mask`` reads; the model itself by default.
    """

    # families name their parts as they like, hence Any
    decoder: Callable[[Any], Any]
    vision: Callable[[Any], tuple[Any, Any]]
    visual_mask: Callable[[Any, dict], object] | None = None
    entry: Callable[[Any], nn.Module] = lambda model: model


_ADAPTERS: dict[str, Adapter] = {}


def register_adapter(model_type: str, adapter: Adapter) -> None:
    """Make ``attach`` serve models whose config says ``model_type``."""
    _ADAPTERS[model_type] = adapter


def adapter_for(model: Any) -> Adapter:
    """The adapter of a model.

    Raises:
        ValueError: when the family has none.
    """
    model_type = getattr(model.config, "model_type", None)
    if model_type not in _ADAPTERS:
        raise ValueError(
            f"no adapter for models of type {model_type!r} (known: {', '.join(sorted(_ADAPTERS))}); "
            "add one with dyvte.families.base.register_adapter"
        )
    return _ADAPTERS[model_type]


def _placeholder_mask(model: Any, kwargs: dict):
    """Visual tokens of transformers' LLaVA: the placeholder ids, or their embeddings where ids are not given."""
    placeholder = model.config.image_token_id
    if kwargs.get("input_ids") is not None:
        return kwargs["input_ids"] == placeholder
    embeds = kwargs["inputs_embeds"]
    weight = model.get_input_embeddings().weight[placeholder].to(embeds)
    return (embeds == weight).all(-1)


register_adapter(
    "llava",  # transformers' LlavaForConditionalGeneration
    Adapter(
        decoder=lambda model: model.model.language_model,
        vision=lambda model: (model.model.vision_tower, model.model.multi_modal_projector),
        visual_mask=_placeholder_mask,
        entry=lambda model: model.model,
    ),
)
