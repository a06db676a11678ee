"""The projectors of LLaVA: linear, ``mlpNx_gelu`` and identity.

Called by :mod:`llava.model.llava_arch`.
"""

from __future__ import annotations

import re

from torch import nn


def build_vision_projector(config, delay_load: bool = False, **kwargs) -> nn.Module:
    """The projector that ``config.mm_projector_type`` names, (..., mm_hidden_size) -> (..., hidden_size).

    An ``mlpNx_gelu`` projector keeps LLaVA's names: linear layers at 0, 2, ..., 2(N-1), GELU between.
    ``delay_load`` and further keywords are accepted as in LLaVA and have no effect.

    Raises:
        ValueError: for a type that does not exist.
    """
    kind = getattr(config, "mm_projector_type", "linear")
    if kind == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size)
    if kind == "identity":
        return nn.Identity()
    depth = re.fullmatch(r"mlp(\d+)x_gelu", kind or "")
    if depth is None or int(depth[1]) < 1:
        raise ValueError(f"unknown mm_projector_type {kind!r}: use linear, identity or mlp<N>x_gelu")
    layers: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(int(depth[1]) - 1):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)
