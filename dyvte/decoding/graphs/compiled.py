"""Decoder layers compiled one by one, all of a shape by one compilation.

Called by :mod:`dyvte.decoding.graphs.graphs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface

from dyvte.decoding.attention.interface import NAME, packed_attention

MOST_SHAPES = 128
"""Shapes that are compiled; layers of further ones run uncompiled. A choice: more than the buckets that are kept."""


@cache
def _prepare() -> None:
    # attention calls a kernel that no compiler changes, by plans that differ from row to row: it is not looked into
    AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))
    config: Any = import_module("torch._dynamo.config")
    config.recompile_limit = max(config.recompile_limit, MOST_SHAPES)


def compiled(layers: Sequence[nn.Module], backend: str = "inductor") -> list[nn.Module]:
    """The layers, to be compiled when they are first called with a shape. They share their compilations."""
    _prepare()
    return [cast(nn.Module, torch.compile(layer, dynamic=False, backend=backend)) for layer in layers]
