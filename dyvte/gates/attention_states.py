"""Attention as a gate's input (paper, Table 6): three vectors per layer, each of the decoder's hidden size.

From the layer's attention weights (causal softmax in float32, mean over heads), of a sample's visual tokens V and its
prompt's text tokens T that follow the last of them:

- ``image_self``: what each visual token gets from the visual tokens, ``mean over q in V of A[q, v]``, v in V;
- ``cross``: what each visual token gets from the text, ``mean over q in T of A[q, v]``, v in V;
- ``text_self``: what each text token gets from the text, ``mean over q in T of A[q, t]``, t in T.

The paper says only that attention scores of different sizes were interpolated to one length. Here that length is the
hidden size D, by linear interpolation over the tokens' order (``align_corners=False``), and the weights are not
rescaled. One sample's weights are held at a time.

Called by :mod:`dyvte.gates.exit` and :mod:`dyvte.gates.supervision`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dyvte.decoding.attention.interface import AttentionInputs
from dyvte.decoding.attention.logits import causal_logits
from dyvte.decoding.packed import TEXT, VISUAL
from dyvte.gates.states import ATTENTION_STATES


@torch.no_grad()
def attention_states(inputs: AttentionInputs, length: int) -> dict[str, Tensor]:
    """The three vectors of the sequences that have states, each (n, length) in the queries' dtype.

    Args:
        inputs: what the layer's attention works on.
        length: what vectors are interpolated to.
    """
    layout, dtype = inputs.layout, inputs.query.dtype
    rows: dict[str, list[Tensor]] = {name: [] for name in ATTENTION_STATES}
    for sequence in layout.may_exit:
        start, stop = layout.starts[sequence], layout.starts[sequence] + layout.lengths[sequence]
        for name, vector in zip(ATTENTION_STATES, _vectors(inputs, start, stop), strict=True):
            stretched = torch.nn.functional.interpolate(vector[None, None], size=length, mode="linear")
            rows[name].append(stretched[0, 0].to(dtype))
    nothing = inputs.query.new_zeros(0, length)
    return {name: torch.stack(values) if values else nothing for name, values in rows.items()}


def _vectors(inputs: AttentionInputs, start: int, stop: int) -> tuple[Tensor, ...]:
    """``image_self`` and ``cross`` (V,), ``text_self`` (T,) of one sequence, float32."""
    kinds = inputs.layout.kinds[start:stop]
    images = np.flatnonzero(kinds == VISUAL)
    after = np.flatnonzero(kinds == TEXT)
    visual, text = inputs.layout.to_device(images), inputs.layout.to_device(after[after > images[-1]])

    def received(queries: Tensor) -> Tensor:
        """(t,) what every token of the sequence gets from these, on average over them and the heads."""
        return causal_logits(inputs, start + queries, start, stop).softmax(-1).mean((0, 1))

    from_text = received(text)
    return received(visual)[visual], from_text[visual], from_text[text]
