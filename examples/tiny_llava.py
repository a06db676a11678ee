"""A LLaVA of transformers' own class with random weights, small enough for a laptop: 4 layers, 4 tokens per image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_TOKEN = 199
TOKENS_PER_IMAGE = 4


def tiny_llava(seed: int = 0) -> Any:
    """The model (``LlavaForConditionalGeneration``), in evaluation mode."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=200,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)  # type: ignore[call-arg]
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)  # else the states of all prompts are nearly the same
    return model


def two_prompts() -> dict[str, Tensor]:
    """Two prompts with an image each and different lengths, padded on the left, as a processor would make them."""
    image = [IMAGE_TOKEN] * TOKENS_PER_IMAGE
    rows = [[1, 5, 6, *image, 7, 8, 9, 10], [1, *image, 40, 41]]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(7))
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}
