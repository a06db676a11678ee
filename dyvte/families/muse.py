"""Muse Glimmer and Spark: windows in most layers, and layers without rotary embedding.

transformers: ``models/muse_glimmer/modeling_muse_glimmer.py``, ``models/muse_spark/modeling_muse_spark.py``, whose
sounds are no visual tokens. Logits are scaled, then squeezed by a tanh.

Registered in ``dyvte/families/__init__.py``; logits must equal those of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dyvte.families.base import WITH_VIDEO, family
from dyvte.families.rules import LayerRule
from dyvte.families.stack import Rope, Stack

UNROTATED = ", no rope"


class MuseStack(Stack):
    """The kind of a layer also says whether it has a rotary embedding."""

    def kind(self, index: int) -> str:
        return super().kind(index) + ("" if self.config.layer_rope_theta[index] else UNROTATED)

    def rule(self, kind: str) -> LayerRule:
        return super().rule(kind.removesuffix(UNROTATED))

    def ropes(self, hidden: Tensor, positions: Tensor) -> Mapping[str, Rope]:
        ropes = super().ropes(hidden, positions)
        return {kind: None if kind.endswith(UNROTATED) else rope for kind, rope in ropes.items()}


def scaled(model: Any, logits: Tensor) -> Tensor:
    """Logits as the model's head gives them."""
    config = model.config.text_config
    cap: float = config.final_logit_softcapping
    return cap * torch.tanh(logits * config.output_multiplier / cap)


for name in ("muse_glimmer", "muse_spark"):
    family(
        name,
        projector=("model.vision_adapter", "model.vision_projection"),
        ids=WITH_VIDEO,
        stack=MuseStack,
        logits=scaled,
    )
