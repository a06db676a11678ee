"""Llama 4: chunks in most layers, full attention without rotary embedding in the others.

transformers: ``models/llama4/modeling_llama4.py``. Layers without rotary embedding scale each query by its index in
the row they are given; in a packed row that is not its place in the prompt, which :meth:`Llama4Stack.rescale`
corrects.

Registered in ``dyvte/families/__init__.py``; logits must equal those of transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dyvte.families.base import family
from dyvte.families.stack import Stack

if TYPE_CHECKING:
    from dyvte.decoding.packed import Layout


class Llama4Stack(Stack):
    """Attention temperature tuning by places in the prompt."""

    computes_all_experts = True

    def rescale(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, module: Any, query: Tensor, layout: Layout
    ) -> Tensor:
        """Queries with the scale of their own places, in layers that scale."""
        config = module.config
        if not module.attn_temperature_tuning or module.use_rope:
            return query

        def scale(places: Tensor) -> Tensor:
            steps = torch.floor((places.float() + 1.0) / config.floor_scale)
            return torch.log1p(steps) * config.attn_scale + 1.0

        wrong = scale(torch.arange(query.shape[2], device=query.device))
        return query * (scale(layout.place_ids) / wrong)[None, None, :, None].to(query)


family("llama4", "language_model.model", "vision_model", "multi_modal_projector", entry="", stack=Llama4Stack)
