"""Decoder FLOPs of prompts with an exit after each layer, from token counts alone.

All exits are counted here, so that reports, calibration and studies agree.

Called from :mod:`dyvte.decoding`, :mod:`dyvte.engine` and :mod:`dyvte.study`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyvte.cost.layers import each_layer


def decoder_flops_by_exit(
    costs: Any, prompt_tokens: Sequence[int], visual_tokens: Sequence[int]
) -> NDArray[np.int64]:
    """FLOPs of all decoder layers with an exit after each layer, (L + 1, n); the last row is without exit.

    Args:
        costs: of the L layers (:func:`~dyvte.cost.layers.layer_costs`), or the config of a dense decoder.
        prompt_tokens, visual_tokens: (n,) tokens of each prompt, and how many of them are visual.
    """
    layers = each_layer(costs)
    text_tokens = [tokens - images for tokens, images in zip(prompt_tokens, visual_tokens, strict=True)]
    full, text = (
        np.array([[layer.flops(n) for n in tokens] for layer in layers], dtype=np.int64)
        for tokens in (prompt_tokens, text_tokens)
    )
    nothing = np.zeros((1, len(text_tokens)), dtype=np.int64)
    # layers above the exit, on text tokens alone: none after the last layer, and none without exit
    above = np.concatenate([text[::-1].cumsum(0)[::-1][1:], nothing, nothing])
    up_to = full.cumsum(0)
    return np.concatenate([up_to, up_to[-1:]]) + above
