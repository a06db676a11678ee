"""Fuyu: patches of an image are projected by one matrix, without a tower, into a Persimmon decoder.

transformers: ``models/fuyu/modeling_fuyu.py``, ``models/persimmon/modeling_persimmon.py``. Tokens that end a line of
patches are ordinary embeddings, so they are text.

Registered in ``dyvte/families/__init__.py``; logits must equal those of transformers.
"""

from __future__ import annotations

from dyvte.families.base import family
from dyvte.families.stack import Stack


class PersimmonStack(Stack):
    """Its final norm has a name of its own."""

    norm_name = "final_layernorm"


family("fuyu", tower="model.vision_embed_tokens", projector=None, stack=PersimmonStack)
