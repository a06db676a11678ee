"""Gemma 3 and 4, PaliGemma 1 and 2: tokens of an image, or of a whole prompt, see each other in both directions.

transformers: ``models/gemma3/modeling_gemma3.py`` (``token_type_ids_mask_function``), ``models/paligemma``,
``models/gemma4``. Blocks come from the token types that the processor makes.

Registered in ``dyvte/families/__init__.py``; masks must equal those of transformers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dyvte.families.base import WITH_VIDEO, family
from dyvte.families.protocols import Decoder
from dyvte.families.rules import LayerRule
from dyvte.families.stack import Stack, by_slot

if TYPE_CHECKING:
    from dyvte.decoding.packed import Layout

SharedStates = dict[Any, tuple[Tensor, Tensor]]
"""One entry, under the name that transformers' layers use: keys and values (1, heads, T, head_dim) of a row."""


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


class Gemma4Extras:
    """Per-layer embeddings (B, S, layers, width) or None, and keys and values that upper layers read again."""

    def __init__(self, embeddings: Tensor | None) -> None:
        self.embeddings = embeddings
        self._stored: dict[str, tuple[Layout, SharedStates]] = {}

    def store(self, kind: str, layout: Layout) -> SharedStates:
        """Where the layer whose keys and values upper layers of its kind read puts them."""
        self._stored[kind] = layout, {}
        return self._stored[kind][1]

    def read(self, kind: str, layout: Layout) -> SharedStates:
        """Keys and values of the tokens that are still in the row; those of copies are their sample's own."""
        then, states = self._stored[kind]
        if layout is then:
            return states
        count = len(then.samples)
        owners = np.where(layout.owners < count, layout.owners, np.array(layout.samples)[layout.owners])
        span = then.origins.max() + 1
        at = np.searchsorted(then.owners * span + then.origins, owners * span + layout.origins)
        index, device = then.to_device(at), layout.positions.device
        left = {
            name: (keys.index_select(2, index).to(device), values.index_select(2, index).to(device))
            for name, (keys, values) in states.items()
        }
        self._stored[kind] = layout, left
        return left


class Gemma4Stack(Stack):
    """Blocks hold in windowed layers only; small sizes have embeddings for each layer, and share keys and values.

    Upper layers that share keys and values read those of the last layer of their kind that has its own. The cache
    holds a copy for each, as after an exit they are of fewer tokens. ``generate`` of transformers computes these
    layers for the last token of a prompt only; here all tokens pass them, as in its forward.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder)
        self._shares = any(self._mode(layer, "is_kv_shared_layer") for layer in self.layers)

    @staticmethod
    def _mode(layer: Any, name: str) -> bool:
        return getattr(layer.self_attn, name, False)

    def rule(self, kind: str) -> LayerRule:
        """As for other decoders, but without blocks in layers of full attention."""
        return LayerRule(blocks=False) if kind == "full_attention" else super().rule(kind)

    def extras(self, kwargs: Mapping[str, Any], embeds: Tensor) -> Gemma4Extras | None:
        decoder: Any = self.decoder
        if getattr(decoder, "hidden_size_per_layer_input", 0):
            return Gemma4Extras(decoder.project_per_layer_inputs(embeds, kwargs.get("per_layer_inputs")))
        return Gemma4Extras(None) if self._shares else None

    def arguments(self, index: int, layout: Layout) -> dict[str, Any]:
        """The layer's own embeddings of the tokens that are still there, and shared keys and values."""
        extras: Gemma4Extras | None = layout.extras
        if extras is None:
            return {"per_layer_input": None, "shared_kv_states": {}}
        own = None if extras.embeddings is None else by_slot(extras.embeddings[:, :, index], layout)
        kind, layer = self.kinds[index], self.layers[index]
        shared: SharedStates = {}
        if self._mode(layer, "is_kv_shared_layer"):
            shared = extras.read(kind, layout)
        elif self._mode(layer, "store_full_length_kv"):
            shared = extras.store(kind, layout)
        return {"per_layer_input": own, "shared_kv_states": shared}


class Gemma4UnifiedStack(Gemma4Stack):
    """Blocks hold in all layers, and a window does not limit them, as in PaliGemma."""

    window_cuts_blocks = False
    rule = Stack.rule


for name in ("gemma3", "shieldgemma2"):
    family(name, blocks=image_blocks)
family(
    "paligemma", blocks=prompt_block, stack=PaliGemmaStack, logits=capped, answer_types={"token_type_ids": 1}
)
family(
    "gemma4_unified",
    tower="model.embed_vision",
    projector=None,
    ids=WITH_VIDEO,
    blocks=vision_blocks,
    stack=Gemma4UnifiedStack,
    logits=capped,
)
family(
    "gemma4",
    projector="model.embed_vision",
    ids=WITH_VIDEO,
    blocks=vision_blocks,
    stack=Gemma4Stack,
    logits=capped,
)
