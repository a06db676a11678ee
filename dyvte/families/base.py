"""What decoding and costs must know of a model family (:class:`Adapter`), and the registry of families.

Looked up by :mod:`dyvte.decoding.attach`, :mod:`dyvte.cost` and :mod:`dyvte.engine` by ``model.config.model_type``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dyvte.families.protocols import Decoder, VisionLanguageModel
from dyvte.families.stack import Stack


@dataclass(frozen=True)
class Adapter:
    """One model family; every callable gets the model, or what it says.

    Attributes:
        decoder: model -> its decoder.
        vision: model -> (vision tower, projector), for costs; None where absent.
        visual_mask: (model, keyword arguments of ``entry``) -> (B, S) bool, which tokens are visual; None where the
            model itself hands ``visual_mask`` to its decoder.
        entry: model -> the module whose keyword arguments ``visual_mask`` and ``blocks`` read.
        stack: decoder -> what the loop runs; a :class:`~dyvte.families.stack.Stack`.
        blocks: (model, keyword arguments of ``entry``) -> (B, S) long, tokens that see each other in both directions,
            -1 for the others; None where all layers are causal.
        logits: (model, output of the language head) -> the model's logits, where these differ.
        answer_types: name of an input with token types -> the type of an answer's tokens, where it is not 0.
        encoder: model -> the name of its method from pixels (I, ...) to projected features (I, N, D), if the method
            only launches kernels and so can be recorded; else None.
        mixes_videos: whether one call takes images and videos; some classes of transformers have one place for both.
        counts_vision: whether FLOPs of tower and projector are counted while they run, for lack of a formula.
    """

    decoder: Callable[[Any], Decoder]
    vision: Callable[[Any], tuple[nn.Module | None, nn.Module | None]]
    visual_mask: Callable[[Any, dict[str, Any]], Tensor] | None = None
    entry: Callable[[Any], nn.Module] = lambda model: model
    stack: Callable[[Any], Any] = Stack
    blocks: Callable[[Any, dict[str, Any]], Tensor | None] | None = None
    logits: Callable[[Any, Tensor], Tensor] = lambda model, logits: logits
    answer_types: Mapping[str, int] = field(default_factory=dict)
    encoder: Callable[[Any], str | None] = lambda model: None
    mixes_videos: bool = True
    counts_vision: bool = False


_ADAPTERS: dict[str, Adapter] = {}
WITH_VIDEO = ("image_token_id", "video_token_id")
"""Fields of configs with the placeholders of families that take videos, too."""
REFUSED: dict[str, str] = {}
"""Model types that cannot have exits -> why."""


def register_adapter(model_type: str, adapter: Adapter) -> None:
    """Register the family of models whose config says ``model_type``; a later call replaces an earlier one."""
    _ADAPTERS[model_type] = adapter


def adapter_for(model: Any) -> Adapter:
    """The adapter of a model; ValueError when the family has none, or cannot have exits."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type in REFUSED:
        raise ValueError(f"exits are not available for models of type {model_type!r}: {REFUSED[model_type]}")
    if model_type not in _ADAPTERS:
        raise ValueError(
            f"no adapter for models of type {model_type!r} (known: {', '.join(sorted(_ADAPTERS))}); "
            "add one with dyvte.families.base.register_adapter"
        )
    return _ADAPTERS[model_type]


def unwrapped(model: Any) -> Any:
    """The model of transformers inside peft's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def stack_of(model: Any) -> Stack:
    """A model's decoder as the loop runs it."""
    adapter = adapter_for(model)
    return adapter.stack(adapter.decoder(model))


def at_path(root: Any, path: str | Sequence[str] | None) -> Any:
    """The attribute at a dotted path, ``root`` for an empty one; a list of modules for several; None for None."""
    if not isinstance(path, str | None):
        return nn.ModuleList(at_path(root, name) for name in path)
    for name in path.split(".") if path else ():
        root = getattr(root, name)
    return None if path is None else root


def family(
    model_type: str,
    decoder: str = "model.language_model",
    tower: str = "model.vision_tower",
    projector: str | Sequence[str] | None = "model.multi_modal_projector",
    *,
    ids: Sequence[str] = ("image_token_id",),
    entry: str = "model",
    **more: Any,
) -> None:
    """Register a family of transformers by where its parts are in the model.

    Args:
        decoder, tower, projector, entry: dotted paths from the model; ``entry`` is the module that gets token ids or
            embeddings, pixels, and the masks. ``projector`` may be several: whatever runs beside the tower.
        ids: the config's fields with the ids of placeholders, which become visual tokens.
        more: see :class:`Adapter`.
    """
    register_adapter(
        model_type,
        Adapter(
            decoder=lambda model: at_path(model, decoder),
            vision=lambda model: (at_path(model, tower), at_path(model, projector)),
            visual_mask=lambda model, kwargs: placeholder_mask(model, kwargs, ids),
            entry=lambda model: at_path(model, entry),
            counts_vision=True,
            **more,
        ),
    )


def placeholder_mask(model: VisionLanguageModel, kwargs: dict[str, Any], names: Sequence[str]) -> Tensor:
    """Which tokens are placeholders, (B, S) bool, by their ids or, where these are not given, their embeddings.

    Args:
        kwargs: of the family's entry, with ``input_ids`` or ``inputs_embeds``.
        names: the config's fields with the placeholders' ids.

    Raises:
        ValueError: a placeholder is outside of the vocabulary, so that it has no embedding to compare with.
    """
    ids = [value for name in names if (value := getattr(model.config, name, None)) is not None]
    given = kwargs.get("input_ids")
    if given is not None:
        return torch.isin(given, torch.tensor(ids, device=given.device))
    embeds, table = kwargs["inputs_embeds"], model.get_input_embeddings()
    found = []
    for value in ids:
        if value >= len(table.weight):
            raise ValueError(
                f"placeholder {value} has no embedding: give this model input_ids, not inputs_embeds"
            )
        embedding = table(torch.tensor(value, device=embeds.device)).to(embeds)
        found.append((embeds == embedding).all(-1))
    return torch.stack(found).any(0)
