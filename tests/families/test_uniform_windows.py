"""A window that the config names for all layers: computed where the family knows windows, as its own code does."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
)

from dyvte import NoExit, attach

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
}


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("config_class", [LlamaConfig, MistralConfig])
def test_logits_are_those_of_the_familys_own_code(config_class, window):
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    )
    text = config_class(**SIZES, sliding_window=window)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=199)
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, 5, 199, 199, 199, 199, 7, 8, 9, 10, 11, 12]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 28, 28),
    }
    own = model(**inputs).logits
    with attach(model, NoExit()):
        packed = model(**inputs).logits
    torch.testing.assert_close(packed, own)
