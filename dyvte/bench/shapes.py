"""The measured models: decoders of known layer shapes with random weights, alone or behind a CLIP tower, and prompts.

Time does not depend on the values of weights, so no checkpoint is needed.

Called throughout :mod:`dyvte.bench`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dyvte.decoding.attach import is_attached
from dyvte.families.base import Adapter, register_adapter

T = TypeVar("T", bound=PreTrainedModel)

QWEN2_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_hidden_layers": 28,
    "vocab_size": 152064,
}
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
    "qwen2.5-vl-7b": QWEN2_7B,
    "internvl3-8b": {**QWEN2_7B, "vocab_size": 151674},
    "qwen3-vl-8b": {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_hidden_layers": 36,
        "vocab_size": 151936,
    },
}
"""Decoders of LLaVA-1.5 7B and 13B, the shipped Tiny-LLaVA, Qwen2.5-VL-7B, InternVL3-8B, and Qwen3-VL-8B without its
deepstack. Rotary embeddings have one axis, which costs a layer the same."""
LLAVA_TOWER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
TOWERS = {
    "7b": LLAVA_TOWER,
    "13b": LLAVA_TOWER,
    "tiny": {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 72,
        "patch_size": 8,
    },
}
"""CLIP towers, by the shape of the decoder behind them."""
VISUAL_TOKENS = {"llava-1.5": 576, "tiny": 81, "llava-next": 2880, "qwen2.5-vl-long": 16384}
"""Visual tokens of prompts by name: one image of LLaVA-1.5 and of Tiny-LLaVA, the five tiles of LLaVA-NeXT, and the
most that Qwen2.5-VL's processor makes of an image by default."""
SYSTEM_TOKENS = 35
"""Text tokens before the image in LLaVA-1.5's prompt (template vicuna_v1): where the bench puts its random image."""
END, IMAGE, FIRST_WORD = 2, 4, 5
"""Token ids of models with a tower: the end of an answer, an image's placeholder, the first that is a word."""


class Masked:
    """A decoder of transformers that takes ``visual_mask`` (B, S), which it gets while a policy is attached."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int = 0,
        visual_mask: Tensor | None = None,
        **kwargs,
    ) -> Any:
        # ``generate`` looks for these names in the signature
        own: Any = self
        if visual_mask is not None and is_attached(own):
            kwargs["visual_mask"] = visual_mask
        stock: Any = super()
        return stock.forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )


class MaskedLlama(Masked, LlamaForCausalLM):  # type: ignore[misc]
    """Llama."""


class MaskedQwen2(Masked, Qwen2ForCausalLM):  # type: ignore[misc]
    """Qwen2: the projections of attention have a bias."""


class MaskedQwen3(Masked, Qwen3ForCausalLM):  # type: ignore[misc]
    """Qwen3: queries and keys are normed."""


KINDS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, MaskedLlama),
    "qwen2": (Qwen2Config, MaskedQwen2),
    "qwen3": (Qwen3Config, MaskedQwen3),
}
for _kind in KINDS:
    register_adapter(_kind, Adapter(decoder=lambda model: model.model, vision=lambda model: (None, None)))


def random_model(
    name: str, layers: int | None = None, dtype=torch.float32, device: str = "cpu", seed: int = 0
) -> MaskedLlama:
    """A decoder with language head of a known shape and random weights; typed as the commonest of its classes.

    Args:
        name: one of :data:`SHAPES`.
        layers: decoder layers; by default the real model's.

    Raises:
        ValueError: on an unknown shape, or a depth below 1.
    """
    config = config_of(name, layers)
    return _random(lambda: KINDS[config.model_type][1](config), dtype, device, seed)


def random_vlm(
    name: str, layers: int | None = None, dtype=torch.float32, device: str = "cpu", seed: int = 0
) -> LlavaForConditionalGeneration:
    """As :func:`random_model`, behind LLaVA's tower and projector. It never ends an answer.

    Raises:
        ValueError: also on a shape without a tower.
    """
    text = config_of(name, layers)
    if name not in TOWERS:
        raise ValueError(f"{name} has no tower here: choose one of {', '.join(TOWERS)}")
    sizes: dict[str, Any] = {**TOWERS[name]}
    parts: dict[str, Any] = {"vision_config": CLIPVisionConfig(**sizes), "text_config": text}
    config = LlavaConfig(**parts, image_token_id=IMAGE)  # pyright: ignore[reportCallIssue] - its image_token_index
    model = _random(lambda: LlavaForConditionalGeneration(config), dtype, device, seed)
    model.lm_head.weight.data[END] = 0  # among hundreds of logits, the largest is above 0
    return model


def config_of(name: str, layers: int | None) -> Any:
    """The config of a decoder, as :func:`random_model` makes it."""
    if name not in SHAPES:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(SHAPES)}")
    sizes = {"model_type": "llama", **SHAPES[name]}
    if layers is not None:
        if layers < 1:
            raise ValueError(f"--layers must be at least 1, got {layers}")
        sizes["num_hidden_layers"] = layers
    make = KINDS[sizes.pop("model_type")][0]
    return make(**sizes, max_position_embeddings=32768, bos_token_id=1, eos_token_id=END, pad_token_id=0)


def _random(make: Callable[[], T], dtype, device: str, seed: int) -> T:
    torch.manual_seed(seed)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = make()
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

    def inputs(self) -> dict[str, Tensor]:
        """Keywords of the model's forward."""
        return dict(vars(self))

    def text_only(self) -> Prompts:
        """The same prompts without their images."""
        text = ~self.visual_mask[0]
        return Prompts(self.inputs_embeds[:, text], self.visual_mask[:, text])


def random_prompts(model, batch: int, text_tokens: int, visual_tokens: int, seed: int = 0) -> Prompts:
    """Prompts of ``text_tokens + visual_tokens`` tokens, the image where LLaVA-1.5's prompt has it.

    Raises:
        ValueError: when there are fewer than two text tokens, or no visual one.
    """
    place = _image_place(batch, text_tokens, visual_tokens)
    generator = torch.Generator().manual_seed(seed)
    columns = text_tokens + visual_tokens
    embeds = 0.02 * torch.randn(batch, columns, model.config.hidden_size, generator=generator)
    visual = torch.zeros(batch, columns, dtype=torch.bool)
    visual[:, place] = True
    return Prompts(embeds.to(model.device, model.dtype), visual.to(model.device))


@dataclass(frozen=True, eq=False)
class PixelPrompts:
    """A batch of prompts for a model with a tower.

    Attributes:
        input_ids: (B, S) long, with placeholders.
        pixel_values: (images, 3, H, W).
    """

    input_ids: Tensor
    pixel_values: Tensor

    def inputs(self) -> dict[str, Tensor]:
        """Keywords of the model's forward."""
        return dict(vars(self))


def pixel_prompts(model, batch: int, text_tokens: int, visual_tokens: int) -> PixelPrompts:
    """The prompts of :func:`random_prompts` before the tower, with as many images each as the tokens are worth.

    Raises:
        ValueError: also when the visual tokens are no whole images.
    """
    place = _image_place(batch, text_tokens, visual_tokens)
    tower = model.config.vision_config
    patches = (tower.image_size // tower.patch_size) ** 2
    if visual_tokens % patches:
        raise ValueError(
            f"--visual-tokens must be a multiple of {patches} with this tower, got {visual_tokens}"
        )
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(FIRST_WORD, vocabulary, (batch, text_tokens + visual_tokens), generator=generator)
    ids[:, place] = IMAGE
    images = batch * visual_tokens // patches
    pixels = torch.randn(images, 3, tower.image_size, tower.image_size, generator=generator)
    return PixelPrompts(ids.to(model.device), pixels.to(model.device, model.dtype))


def _image_place(batch: int, text_tokens: int, visual_tokens: int) -> slice:
    """The columns of the visual tokens."""
    if text_tokens < 2 or visual_tokens < 1 or batch < 1:
        raise ValueError(
            "a prompt needs at least 2 text tokens and 1 visual token, a batch at least 1 prompt; got "
            f"{text_tokens}, {visual_tokens}, {batch}"
        )
    before = min(SYSTEM_TOKENS, text_tokens // 2)
    return slice(before, before + visual_tokens)
