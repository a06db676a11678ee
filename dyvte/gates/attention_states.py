"""Attention as a gate's input (paper, Table 6): three vectors per layer, each of the decoder's hidden size.

From the layer's attention weights (causal softmax in float32, mean over heads), of a sample's visual tokens V and its
prompt's text tokens T that follow the last of them:

- ``image_self``: what each visual token gets from the visual tokens, ``mean over q in V of A[q, v]``, v in V;
- ``cross``: what each visual token gets from the text, ``mean over q in T of A[q, v]``, v in V;
- ``text_self``: what each text token gets from the text, ``mean over q in T of A[q, t]``, t in T.

The paper says only that attention scores of different sizes were interpolated to one length. Here that length is the
hidden size D, by linear interpolation over the tokens' order (``align_corners=False``), and the weights are not
rescaled. One sample's weights are held at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dyvte.decoding.attention_weights import causal_logits
from dyvte.decoding.packed import TEXT, VISUAL, Layout
from dyvte.gates.states import ATTENTION_STATES, state_index


@torch.no_grad()
def attention_states(query: Tensor, key: Tensor, layout: Layout, length: int) -> dict[str, Tensor]:
    """The three vectors of the segments that have states, each (n, length) in the queries' dtype.

    Args:
        query: (1, heads, T, head_dim), key: (1, kv_heads, T, head_dim), after rotary embedding.
        layout: the row's tokens.
        length: what vectors are interpolated to.
    """
    rows: dict[str, list[Tensor]] = {name: [] for name in ATTENTION_STATES}
    for segment in state_index(layout).segments:
        start, stop = layout.starts[segment], layout.starts[segment] + layout.lengths[segment]
        for name, vector in zip(ATTENTION_STATES, _vectors(query, key, layout, start, stop), strict=True):
            stretched = torch.nn.functional.interpolate(vector[None, None], size=length, mode="linear")
            rows[name].append(stretched[0, 0].to(query.dtype))
    nothing = query.new_zeros(0, length)
    return {name: torch.stack(values) if values else nothing for name, values in rows.items()}


def _vectors(query: Tensor, key: Tensor, layout: Layout, start: int, stop: int) -> tuple[Tensor, ...]:
    """``image_self`` and ``cross`` (V,), ``text_self`` (T,) of one segment, float32."""
    kinds = layout.kinds[start:stop]
    images = np.flatnonzero(kinds == VISUAL)
    after = np.flatnonzero(kinds == TEXT)
    visual, text = layout.to_device(images), layout.to_device(after[after > images[-1]])

    def received(queries: Tensor) -> Tensor:
        """(t,) what every token of the segment gets from these, on average over them and the heads."""
        return causal_logits(query, key, start + queries, start, stop).softmax(-1).mean((0, 1))

    from_text = received(text)
    return received(visual)[visual], from_text[visual], from_text[text]
