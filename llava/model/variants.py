"""What differs between LLaVA-1.5 and the paper's other three models, which keep LLaVA's checkpoint layout.

VILA v1.0 has LLaVA's config and keys, so that only its name tells it apart; InternVL-Chat and Eagle are known by
their vision towers.

Called from :mod:`llava.chat_model`, :mod:`llava.model` and :mod:`llava.train`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Variant:
    """How a model's own code loads and asks it.

    Attributes:
        unpadded: the evaluators that give images to the image processor as they are (shorter side resized, centre
            cropped), whatever the config's ``image_aspect_ratio``.
        tokenizer: arguments of the tokenizer beside what the checkpoint says.
        float32_tower: whether the tower stays in float32 in a model that is spread over GPUs.
    """

    unpadded: frozenset[str] = frozenset()
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    float32_tower: bool = False


LLAVA = Variant(float32_tower=True)
VILA = Variant(unpadded=frozenset({"model_vqa", "model_vqa_science"}), tokenizer={"legacy": False})
INTERNVL = Variant(unpadded=frozenset({"model_vqa", "model_vqa_science", "run_llava"}))
EAGLE = Variant()


def is_internvit(tower: str) -> bool:
    """Whether ``mm_vision_tower`` names an InternViT."""
    return "intern" in Path(tower).name.lower()


def is_mixture(tower: str) -> bool:
    """Whether ``mm_vision_tower`` names several towers (Eagle): ``clip-448;convnext-1024;...``."""
    return ";" in tower


def variant_of(tower: str | None, name: str) -> Variant:
    """The variant of a checkpoint with this ``mm_vision_tower`` and this name (of its folder, or on the Hub)."""
    if is_mixture(tower or ""):
        return EAGLE
    if is_internvit(tower or ""):
        return INTERNVL
    return VILA if "vila" in name.lower() else LLAVA
