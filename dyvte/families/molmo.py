"""Molmo 2: all visual tokens of a prompt are one block, and layers have one of two rotary embeddings.

transformers: ``models/molmo2/modeling_molmo2.py``. Features are added to the placeholders' embeddings.

Registered in ``dyvte/families/__init__.py``; logits must equal those of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dyvte.families.base import family
from dyvte.families.rules import LayerRule
from dyvte.families.stack import Rope, Stack


def one_block(model: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """All visual tokens of a prompt are block 0."""
    types = kwargs.get("mm_token_type_ids")
    return None if types is None else torch.where(types == 1, 0, -1)


class Molmo2Stack(Stack):
    """The kind of a layer is its rotary embedding."""

    def kind(self, index: int) -> str:
        """``scaled`` or ``unscaled``."""
        decoder: Any = self.decoder
        return decoder.rope_types[index]

    def rule(self, kind: str) -> LayerRule:
        return LayerRule()

    def ropes(self, hidden: Tensor, positions: Tensor) -> Mapping[str, Rope]:
        decoder: Any = self.decoder
        return {
            "scaled": decoder.rotary_emb(hidden, positions),
            "unscaled": decoder.rotary_emb_unscaled(hidden, positions),
        }


# patches of images and of frames have the same placeholder
family("molmo2", ids=("image_patch_id",), blocks=one_block, stack=Molmo2Stack, mixes_videos=False)
