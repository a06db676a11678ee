"""Gemma 3 and 4, PaliGemma 1 and 2: tokens of an image, or of a whole prompt, see each other in both directions.

transformers: ``models/gemma3/modeling_gemma3.py`` (``token_type_ids_mask_function``), ``models/paligemma``,
``models/gemma4``. Blocks come from the token types that the processor makes. Registered by importing
``dyvte.families``; masks must equal those of transformers.

Registered in ``dyvte/families/__init__.py``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dyvte.families.base import family
from dyvte.families.protocols import Decoder
from dyvte.families.rules import LayerRule
from dyvte.families.stack import Stack, by_slot

if TYPE_CHECKING:
    from dyvte.decoding.packed import Layout


def runs(member: Tensor) -> Tensor:
    """(B, S) bool -> (B, S) long: each run of adjacent True tokens gets the next number from 0; -1 for False."""
    starts = member & ~torch.nn.functional.pad(member, (1, 0))[:, :-1]
    return torch.where(member, starts.cumsum(1) - 1, -1)


def image_blocks(model: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """Gemma 3: each image is a block, in all layers."""
    types = kwargs.get("token_type_ids")
    return None if types is None else runs(types == 1)


def prompt_block(model: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """PaliGemma: the whole prompt is a block; what is generated is causal."""
    types = kwargs.get("token_type_ids")
    return None if types is None else torch.where(types == 0, 0, -1)


def vision_blocks(model: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """Gemma 4: each image or video frame is a block, where the config says so."""
    types = kwargs.get("mm_token_type_ids")
    if types is None or model.config.get_text_config().use_bidirectional_attention != "vision":
        return None
    return runs((types == 1) | (types == 2))


def capped(model: Any, logits: Tensor) -> Tensor:
    """Logits squeezed by a tanh, where the text config says so (PaliGemma 2, Gemma 4)."""
    cap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None or not _caps(type(model)) else cap * torch.tanh(logits / cap)


@functools.cache
def _caps(model_class: type) -> bool:
    """Whether the class caps its logits: PaliGemma's does not in transformers 5.17."""
    return "final_logit_softcapping" in inspect.getsource(model_class.forward)


class PaliGemmaStack(Stack):
    """A window does not limit the prompt's block: transformers' ``masking_utils`` adds blocks after the window."""

    window_cuts_blocks = False


class Gemma4Stack(Stack):
    """Blocks hold in windowed layers only; small sizes have embeddings for each layer.

    Raises:
        ValueError: upper layers read lower layers' keys and values, which an exit would have changed.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder)
        if any(getattr(layer.self_attn, "is_kv_shared_layer", False) for layer in self.layers):
            raise ValueError(
                "exits are not available for Gemma 4 models whose upper layers share keys and values with lower ones"
            )

    def rule(self, kind: str) -> LayerRule:
        """As for other decoders, but without blocks in layers of full attention."""
        return LayerRule(blocks=False) if kind == "full_attention" else super().rule(kind)

    def extras(self, kwargs: Mapping[str, Any], embeds: Tensor) -> Tensor | None:
        decoder: Any = self.decoder
        if not getattr(decoder, "hidden_size_per_layer_input", 0):
            return None
        return decoder.project_per_layer_inputs(embeds, kwargs.get("per_layer_inputs"))

    def arguments(self, index: int, layout: Layout) -> dict[str, Any]:
        """The layer's own embeddings of the tokens that are still there."""
        extras: Tensor | None = layout.extras
        own = None if extras is None else by_slot(extras[:, :, index], layout)
        return {"per_layer_input": own, "shared_kv_states": {}}


for name in ("gemma3", "shieldgemma2"):
    family(name, blocks=image_blocks)
family(
    "paligemma", blocks=prompt_block, stack=PaliGemmaStack, logits=capped, answer_types={"token_type_ids": 1}
)
family(
    "gemma4",
    projector="model.embed_vision",
    ids=("image_token_id", "video_token_id"),
    blocks=vision_blocks,
    stack=Gemma4Stack,
    logits=capped,
)
