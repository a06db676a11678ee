"""Qwen-VL and GLM-V: rotary positions on three axes (time, height, width).

transformers: ``models/{qwen2_vl,qwen2_5_vl,qwen3_vl,qwen3_vl_moe,glm4v,glm4v_moe}``, and the thinkers of
``models/{qwen2_5_omni,qwen3_omni_moe}``, whose sounds are no visual tokens. The tower's merger is the projector. Text
after an image starts at the largest position on any axis plus one; generated tokens follow likewise. Qwen3-VL adds
features of lower tower layers to visual tokens after the first decoder layers (deepstack).

Registered in ``dyvte/families/__init__.py``; logits must equal those of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import transformers
from torch import Tensor

from dyvte.families.base import WITH_VIDEO, family
from dyvte.families.stack import Rope, Stack, TokenFeatures

if TYPE_CHECKING:
    from dyvte.decoding.packed import Layout


class DeepstackStack(Stack):
    """Adds the features that the model gives its decoder after layers 0, 1, ..., which is before layers 1, 2, ..."""

    def extras(self, kwargs: Mapping[str, Any], embeds: Tensor) -> TokenFeatures | None:
        features = kwargs.get("deepstack_visual_embeds")
        if features is None:
            return None
        return TokenFeatures(
            kwargs["visual_pos_masks"], {layer + 1: part for layer, part in enumerate(features)}
        )

    def before(self, index: int, hidden: Tensor, layout: Layout) -> Tensor:
        extras: TokenFeatures | None = layout.extras
        return hidden if extras is None else extras.add(index, hidden, layout)


class CompassStack(DeepstackStack):
    """Layers of some kinds have no rotary embedding; those kinds have no parameters of one in the config."""

    def ropes(self, hidden: Tensor, positions: Tensor) -> Mapping[str, Rope]:
        given, rotary = self.config.rope_parameters, self.decoder.rotary_emb
        if positions.ndim == 2:  # in transformers 5.17 text needs three axes too
            positions = positions.expand(3, *positions.shape)
        kinds = dict.fromkeys(self.kinds)
        return {kind: None if given[kind] is None else rotary(hidden, positions, kind) for kind in kinds}


VISUAL = "model.visual"
for name in ("qwen2_vl", "qwen2_5_vl"):
    family(name, tower=VISUAL, projector=None, ids=WITH_VIDEO)
for name in ("glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr"):  # frames have the placeholder of images
    family(name, tower=VISUAL, projector=None, ids=WITH_VIDEO, mixes_videos=False)
for name in ("qwen3_vl", "qwen3_vl_moe", "cosmos3_omni"):
    family(name, tower=VISUAL, projector=None, ids=WITH_VIDEO, stack=DeepstackStack)
family(
    "cohere_compass",
    tower=VISUAL,
    projector=None,
    ids=WITH_VIDEO,
    stack=CompassStack,
    logits=lambda model, logits: logits * (model.logit_scale or 1.0),
)
NESTED = "Qwen2_5OmniThinkerModel" in dir(transformers)  # in transformers 5.17 no module holds both
OMNI = ("model.language_model", VISUAL) if NESTED else ("model", "visual")
for name, stack in (("qwen2_5_omni_thinker", Stack), ("qwen3_omni_moe_thinker", DeepstackStack)):
    family(name, *OMNI, projector=None, ids=WITH_VIDEO, entry="model" if NESTED else "", stack=stack)
for name in ("cosmos3_edge", "paddleocr_vl"):
    family(name, tower=VISUAL, projector="model.projector", ids=WITH_VIDEO)
