"""LLaVA's model: language model, vision tower, projector, and the loader of its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM"]


def __getattr__(name: str):
    """Import the model classes when they are asked for."""
    if name in __all__:
        from llava.model.language_model import llava_llama

        return getattr(llava_llama, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
