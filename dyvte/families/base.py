"""What a model family has to say about itself, and what the loop expects of its decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class DecoderConfig(Protocol):
    """A decoder's config, of which costs and the loop read these fields."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    use_cache: bool
    _attn_implementation: str | None
    _attn_implementation_internal: str | None


class Decoder(Protocol):
    """A Llama-like decoder: its layers, called one by one, and what stands before and after them."""

    config: Any  # a DecoderConfig; transformers types it more loosely
    layers: Sequence[Any]  # each family's own layer class
    norm: Callable[[Tensor], Tensor]
    rotary_emb: Callable[..., tuple[Tensor, Tensor]]
    embed_tokens: nn.Module

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""
        ...


class VisionLanguageModel(Protocol):
    """A model that answers questions about images, of whichever family."""

    config: Any  # each family's own class
    device: torch.device
    dtype: torch.dtype
    model: Any  # what holds tower, projector and decoder: families name them as they like

    def get_input_embeddings(self) -> Any:
        """The token embeddings."""
        ...

    def get_output_embeddings(self) -> nn.Module:
        """The language head."""
        ...


@dataclass(frozen=True)
class Adapter:
    """What ``attach`` and the costs must know of a model family.

    Attributes:
        decoder: model -> its decoder.
        vision: model -> (vision tower, projector), for costs; None where absent.
        visual_mask: (model, keyword arguments of ``entry``) -> (B, S) bool, which tokens are visual; None where the
            model itself hands ``visual_mask`` to its decoder.
        entry: model -> the module whose keyword arguments ``visual_mask`` reads; the model itself by default.
    """

    decoder: Callable[[Any], Decoder]
    vision: Callable[[Any], tuple[nn.Module | None, nn.Module | None]]
    visual_mask: Callable[[Any, dict[str, Any]], Tensor] | None = None
    entry: Callable[[Any], nn.Module] = lambda model: model


_ADAPTERS: dict[str, Adapter] = {}


def register_adapter(model_type: str, adapter: Adapter) -> None:
    """Make ``attach`` serve models whose config says ``model_type``."""
    _ADAPTERS[model_type] = adapter


def adapter_for(model: Any) -> Adapter:
    """The adapter of a model.

    Raises:
        ValueError: the family has none.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in _ADAPTERS:
        raise ValueError(
            f"no adapter for models of type {model_type!r} (known: {', '.join(sorted(_ADAPTERS))}); "
            "add one with dyvte.families.base.register_adapter"
        )
    return _ADAPTERS[model_type]
