"""Cost of a prefill with an exit after each layer, in one place for calibration, studies and reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyvte.cost.flops import layer_flops


def decoder_flops_by_exit(
    config: Any, prompt_tokens: Sequence[int], visual_tokens: Sequence[int]
) -> NDArray[np.int64]:
    """FLOPs of all decoder layers with an exit after each layer, (L + 1, n); the last row is without exit.

    Args:
        config: of a decoder with L layers.
        prompt_tokens, visual_tokens: (n,) tokens of each prompt, and how many of them are visual.
    """
    layers = config.num_hidden_layers
    full = np.array([layer_flops(config, tokens) for tokens in prompt_tokens], dtype=np.int64)
    text = np.array(
        [
            layer_flops(config, tokens - images)
            for tokens, images in zip(prompt_tokens, visual_tokens, strict=True)
        ],
        dtype=np.int64,
    )
    with_image = np.append(np.arange(1, layers + 1), layers)[:, None]
    return with_image * full + (layers - with_image) * text
