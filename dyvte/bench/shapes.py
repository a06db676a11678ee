"""The measured model: a Llama decoder of LLaVA's layer shapes with random weights, and prompts of random embeddings.

Time does not depend on the values of weights, so no checkpoint is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dyvte.decoding.attach import is_attached
from dyvte.families.base import Adapter, register_adapter

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "vocab_size": 32000,
    },
    "13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_attention_heads": 40,
        "num_hidden_layers": 40,
        "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 20,
        "vocab_size": 640,
    },
}
"""LLaVA-1.5 7B and 13B, and the shipped Tiny-LLaVA."""
VISUAL_TOKENS = (336 // 14) ** 2
"""Visual tokens of an image in LLaVA-1.5: the patches of its tower. Only the default of ``--visual-tokens``."""
SYSTEM_TOKENS = 35
"""Text tokens before the image in LLaVA-1.5's prompt (template vicuna_v1): where the bench puts its random image."""


class MaskedLlama(LlamaForCausalLM):
    """transformers' Llama that takes ``visual_mask`` (B, S), which its decoder gets while a policy is attached."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int = 0,
        visual_mask: Tensor | None = None,
        **kwargs,
    ):
        # ``generate`` looks for these names in the signature
        if visual_mask is not None and is_attached(self):
            kwargs["visual_mask"] = visual_mask
        kwargs |= {"input_ids": input_ids, "position_ids": position_ids}
        return super().forward(attention_mask=attention_mask, logits_to_keep=logits_to_keep, **kwargs)


register_adapter("llama", Adapter(decoder=lambda model: model.model, vision=lambda model: (None, None)))


def random_model(
    name: str, layers: int | None = None, dtype=torch.float32, device: str = "cpu", seed: int = 0
) -> MaskedLlama:
    """A decoder with language head of a known shape and random weights.

    Args:
        name: one of :data:`SHAPES`.
        layers: decoder layers; by default the real model's.

    Raises:
        ValueError: on an unknown shape, or a depth below 1.
    """
    if name not in SHAPES:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(SHAPES)}")
    sizes = dict(SHAPES[name])
    if layers is not None:
        if layers < 1:
            raise ValueError(f"--layers must be at least 1, got {layers}")
        sizes["num_hidden_layers"] = layers
    config = LlamaConfig(
        **sizes, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    torch.manual_seed(seed)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = MaskedLlama(config)
    finally:
        torch.set_default_dtype(previous)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Prompts:
    """A batch of prompts of one length: text, image, text.

    Attributes:
        inputs_embeds: (B, S, D).
        visual_mask: (B, S) bool.
    """

    inputs_embeds: Tensor
    visual_mask: Tensor

    @property
    def batch(self) -> int:
        """Number of prompts."""
        return len(self.inputs_embeds)

    def text_only(self) -> Prompts:
        """The same prompts without their images."""
        text = ~self.visual_mask[0]
        return Prompts(self.inputs_embeds[:, text], self.visual_mask[:, text])


def random_prompts(model, batch: int, text_tokens: int, visual_tokens: int, seed: int = 0) -> Prompts:
    """Prompts of ``text_tokens + visual_tokens`` tokens, the image where LLaVA-1.5's prompt has it.

    Raises:
        ValueError: when there are fewer than two text tokens, or no visual one.
    """
    if text_tokens < 2 or visual_tokens < 1 or batch < 1:
        raise ValueError(
            "a prompt needs at least 2 text tokens and 1 visual token, a batch at least 1 prompt; got "
            f"{text_tokens}, {visual_tokens}, {batch}"
        )
    before = min(SYSTEM_TOKENS, text_tokens // 2)
    generator = torch.Generator().manual_seed(seed)
    columns = text_tokens + visual_tokens
    embeds = 0.02 * torch.randn(batch, columns, model.config.hidden_size, generator=generator)
    visual = torch.zeros(batch, columns, dtype=torch.bool)
    visual[:, before : before + visual_tokens] = True
    return Prompts(embeds.to(model.device, model.dtype), visual.to(model.device))
