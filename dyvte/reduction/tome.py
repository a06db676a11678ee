"""ToMe (arXiv:2210.09461) in an MLLM: after each layer similar visual tokens are merged.

Registered in ``dyvte/methods.py``, its fields as settings; must agree with ``tests/reduction/plain.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from dyvte.decoding.attention.interface import AttentionInputs
from dyvte.decoding.packed import Layout, PackedRow, merge_tokens
from dyvte.decoding.policy import Policy
from dyvte.decoding.trace import ExitTrace
from dyvte.reduction.scores import Observed, visual_index


@dataclass(frozen=True)
class ToMe(Policy):
    """Bipartite soft matching of each sample's visual tokens after the layers ``first_layer`` .. ``last_layer``.

    The visual tokens, in order, alternate between two sets. Each token of the first set has its most similar partner
    in the second (cosine of the layer's keys, mean over heads); the ``r`` most similar pairs become one token, the
    mean weighted by how many tokens each stands for, at the partner's place and position. From the next layer on,
    also while decoding, attention is proportional: the log of a token's size is added to the logits of its key.

    ToMe was made for vision transformers, where it merges between attention and MLP. Here it merges visual tokens
    between layers of the language model, and keys carry rotary embedding, so that near tokens are a little more
    similar. FLOPs of the similarities are counted in the trace.

    Args:
        r: pairs merged after each layer, at most half of the visual tokens left; 0 changes nothing.
        first_layer, last_layer: zero-based, inclusive; by default all layers but the last, where nothing is gained.
    """

    r: int = 16
    first_layer: int = 0
    last_layer: int | None = None

    def __post_init__(self) -> None:
        if self.r < 0:
            raise ValueError(f"ToMe's r must not be negative, got {self.r}")

    def check(self, num_layers: int, hidden_size: int) -> None:
        last = num_layers - 2 if self.last_layer is None else self.last_layer
        if not 0 <= self.first_layer <= last < num_layers:
            raise ValueError(
                f"ToMe's first_layer {self.first_layer} and last_layer {last} must be an ascending range within "
                f"0..{num_layers - 1}"
            )

    def _merges(self, layer: int, trace: ExitTrace) -> bool:
        last = trace.num_layers - 2 if self.last_layer is None else self.last_layer
        return self.r > 0 and self.first_layer <= layer <= last

    def observes(self, layer: int, layout: Layout) -> bool:
        return self.r > 0 and layer >= self.first_layer and any(layout.visual)

    def observe(self, layer: int, inputs: AttentionInputs, trace: ExitTrace) -> None:
        """Store the mean over heads of each token's key."""
        if self._merges(layer, trace):
            trace.scratch[self] = Observed(inputs.layout, inputs.key[0].float().mean(0))

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        observed = trace.scratch.pop(self, None)
        if observed is None:
            return row
        layout = row.layout
        keys = normalize(observed.on(layout), dim=-1)
        into = torch.arange(len(layout.kinds), device=keys.device)
        sequences = [sequence for sequence in layout.may_exit if layout.visual[sequence] > 1]
        for sequence in sequences:
            visual = visual_index(layout, sequence)
            first, second = visual[::2], visual[1::2]
            similarity, partner = (keys[first] @ keys[second].T).max(1)
            pairs = similarity.argsort(descending=True, stable=True)[: min(self.r, len(visual) // 2)]
            into[first[pairs]] = second[partner[pairs]]
            flops = 2 * len(first) * len(second) * keys.shape[1]
            trace.record_scores(layer, layout.samples[sequence], flops)
        return merge_tokens(row, into, track_sizes=True) if sequences else row
