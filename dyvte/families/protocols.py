"""Types of the parts of a model that :mod:`dyvte.decoding`, :mod:`dyvte.cost` and :mod:`dyvte.families` read.

A name added here must exist in the decoder of every family.

Called from :mod:`dyvte.decoding` and :mod:`dyvte.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Decoder(Protocol):
    """A Llama-like decoder: embeddings, layers that are called one by one, final norm."""

    config: Any  # each family's own class; costs and the loop read sizes, use_cache and _attn_implementation
    layers: Sequence[Any]  # each family's own layer class
    norm: Callable[[Tensor], Tensor]
    rotary_emb: Callable[..., tuple[Tensor, Tensor]]
    embed_tokens: nn.Module

    def parameters(self) -> Iterator[nn.Parameter]: ...


class VisionLanguageModel(Protocol):
    """A model that answers questions about images, of whichever family."""

    config: Any  # each family's own class
    device: torch.device
    dtype: torch.dtype
    model: Any  # what holds tower, projector and decoder: families name them as they like

    def get_input_embeddings(self) -> Any: ...

    def get_output_embeddings(self) -> nn.Module: ...
