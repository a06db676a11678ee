"""VisiPruner's exit (arXiv:2510.17205): a dynamic exit without training, by how much each visual token changes the
attention output of the last text token.

Registered in ``dyvte/methods.py``, its fields as settings; must agree with ``tests/reduction/plain.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dyvte.decoding.attention.interface import AttentionInputs
from dyvte.decoding.packed import Layout, PackedRow
from dyvte.decoding.policy import Policy
from dyvte.decoding.trace import ExitTrace
from dyvte.reduction.scores import Observed, check_share, keep_tokens, last_text_attention


@dataclass(eq=False)
class _Watch:
    """State of one prefill.

    Attributes:
        still: by sample whose image has been read, the number of layers since in which no visual token mattered.
        drop: (T,) bool, which tokens leave after the current layer; None when all stay.
    """

    still: dict[int, int] = field(default_factory=dict)
    drop: Observed | None = None


@dataclass(frozen=True)
class StabilityExit(Policy):
    """Visual tokens that do not matter leave at the layer that reads the image; the others once reading has ended.

    In each layer, for each visual token, its contribution to the attention output of the last prompt token (heads
    concatenated, before the output projection) is subtracted, and the result compared with the full output by cosine
    similarity.

    1. The first layer, from ``start`` on, in which the cosine of some visual token is below ``jump`` is where the
       image is read. After it only the visual tokens stay whose contribution has a Euclidean norm above ``size``.
    2. Each later layer in which no cosine is below ``still`` counts; after ``patience`` of them, not necessarily in a
       row, the other visual tokens leave.

    These are "middle" and "deep" of the paper's code, with its values for LLaVA-1.5. Its "shallow" mode, which masks
    attention in early layers without removing a token, is left out. ``size = 0`` gives the exit alone. The norm
    depends on the model, so ``size`` has to be set for each. Attention and cosines of this one query are computed
    beside the attention kernel and counted in the trace.

    Args:
        start: the first layer (zero-based) that is observed; the code's ``shallow_mid_layer`` plus 1.
        jump: the code's ``layer_threshold``, in [0, 1].
        size: the code's ``tokens_threshold``, not negative.
        still: cosine, in [0, 1]; see 2.
        patience: layers, 1 or more; see 2.
    """

    start: int = 7
    jump: float = 0.995
    size: float = 0.2
    still: float = 0.999
    patience: int = 2

    def __post_init__(self) -> None:
        check_share("StabilityExit's jump", self.jump)
        check_share("StabilityExit's still", self.still)
        if self.size < 0 or self.patience < 1:
            raise ValueError(
                "StabilityExit's size must not be negative and its patience must be 1 or more, "
                f"got size={self.size}, patience={self.patience}"
            )

    def check(self, num_layers: int, hidden_size: int) -> None:
        if not 0 <= self.start < num_layers:
            raise ValueError(f"StabilityExit's start must be one of 0..{num_layers - 1}, got {self.start}")

    def observes(self, layer: int, layout: Layout) -> bool:
        return layer >= self.start and any(layout.visual)

    def observe(self, layer: int, inputs: AttentionInputs, trace: ExitTrace) -> None:
        """Decide which visual tokens leave after this layer."""
        layout = inputs.layout
        watch: _Watch = trace.scratch.setdefault(self, _Watch())
        drop = torch.zeros_like(layout.is_visual)
        for sequence, seen, weights in last_text_attention(inputs):
            visual = layout.is_visual[seen]
            parts, cosines = _parts(weights, inputs.value[0, :, seen], visual)
            sample, width = layout.samples[sequence], parts.shape[1]
            trace.record_scores(layer, sample, 4 * width * (weights.shape[1] + len(parts)))
            drop[seen][visual] = self._leaving(watch, sample, parts, cosines)
        watch.drop = Observed(layout, drop) if drop.any() else None

    def _leaving(self, watch: _Watch, sample: int, parts: Tensor, cosines: Tensor) -> Tensor:
        """(n,) bool: which of a sample's visual tokens leave."""
        lowest, none = cosines.min().item(), torch.zeros_like(cosines, dtype=torch.bool)
        if sample not in watch.still:
            if lowest >= self.jump:
                return none
            watch.still[sample] = 0
            return parts.norm(dim=1) <= self.size if self.size else none
        watch.still[sample] += lowest >= self.still
        return torch.full_like(cosines, watch.still[sample] >= self.patience, dtype=torch.bool)

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        watch = trace.scratch.get(self)
        if watch is None or watch.drop is None:
            return row
        drop, watch.drop = watch.drop, None
        return keep_tokens(row, ~drop.on(row.layout), layer, trace)


def _parts(weights: Tensor, values: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
    """Each visual token's contribution to the attention output, and the cosine of the outputs with and without it.

    Args:
        weights: (heads, n), values: (kv_heads, n, head_dim), visual: (n,) bool.

    Returns:
        (v, heads * head_dim) and (v,), float32.
    """
    values = values.float().repeat_interleave(len(weights) // len(values), 0)
    output = torch.einsum("hn,hnd->hd", weights, values).flatten()
    parts = torch.einsum("hn,hnd->nhd", weights[:, visual], values[:, visual]).flatten(1)
    return parts, cosine_similarity(output - parts, output[None], dim=1)
