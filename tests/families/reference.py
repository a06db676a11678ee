"""The reference for exits in any family: the stock model, in which layers above the exit do not see visual keys.

It is a registered attention function around the family's own eager attention, with transformers' explicit 4-D masks.
It shares nothing with packed rows but the model's weights.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from dyvte.families.base import adapter_for

NAME = "tests_hide_visual_keys"
_hidden = {"above": None, "visual": None}


def attention(module, query, key, value, attention_mask, **kwargs):
    """The family's eager attention; text queries of layers above the exit see no visual key."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    if _hidden["above"] is not None and module.layer_idx > _hidden["above"]:
        visual, mask = _hidden["visual"], attention_mask
        text = ~visual[:, -mask.shape[-2] :]
        hide = text[:, None, :, None] & visual[:, None, None, :]
        attention_mask = mask.expand(len(hide), -1, -1, -1).masked_fill(hide, torch.finfo(mask.dtype).min)
    return eager(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def hiding(model, above=None, visual=None):
    """Run the stock model as the reference: visual keys (B, S) are hidden above a layer; None hides nothing."""
    config = adapter_for(model).decoder(model).config
    own = config._attn_implementation_internal
    config._attn_implementation_internal = NAME
    _hidden.update(above=above, visual=visual)
    try:
        yield
    finally:
        config._attn_implementation_internal = own
        _hidden.update(above=None, visual=None)
