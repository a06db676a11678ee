"""LLaVA on current transformers, with the module paths, flags and checkpoints of the original."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava.model import LlavaLlamaForCausalLM

__all__ = ["LlavaLlamaForCausalLM"]


def __getattr__(name: str):
    """Import the model class when it is asked for, so that ``import llava`` stays cheap."""
    if name in __all__:
        import llava.model

        return getattr(llava.model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
