"""How much text and image tokens attend to each other, layer by layer (Fig. 3, 5 and 8 to 16 of the paper).

Three kinds of attention:

- ``image_self``: queries are the sample's visual tokens, keys its visual tokens;
- ``cross``: queries are the text tokens after the last visual token (which gates look at), keys the visual tokens;
- ``text_self``: the same queries as ``cross``, keys all text tokens.

Weights are the causal softmax of a query over *all* tokens that it sees, itself included, in float32; merged tokens
count as often as the layer counts them. Three measures
of a kind, each of one head of one sample, and each a mean over the kind's queries:

- ``mass``: the sum of a query's weights on the kind's keys. For text queries, cross and text_self add up to 1;
- ``weight``: the same sum divided by the number of these keys that the query sees;
- ``entropy``: of the weights on the kind's keys, divided by their sum so that they add up to 1, in nats.

A kind is undefined where it has no query or no key: in a sample without an image or without text after it, and, for
the two kinds with visual keys, in the layers after the image left. A method that removes some visual tokens leaves
these kinds defined over the rest.

Shapes: S samples, M measures, K kinds, L layers, H heads, R queries, N keys.

Called by :mod:`dyvte.study.attention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dyvte.decoding.attention.interface import AttentionInputs
from dyvte.decoding.attention.logits import causal_logits
from dyvte.decoding.packed import Layout, PackedRow
from dyvte.decoding.policy import Policy
from dyvte.decoding.trace import ExitTrace

KINDS = ("image_self", "cross", "text_self")
MEASURES = ("mass", "weight", "entropy")
QUERIES_AT_ONCE = 128
_SCRATCH = "attention statistics"


@dataclass(frozen=True, eq=False)
class HeadStatistics:
    """Statistics of one prefill.

    Attributes:
        mean, variance: (S, M, K, L) float32 over the heads of a layer, on the host; the variance is that of the
            heads themselves (divided by H). NaN where a kind is undefined.
    """

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class AttentionStats(Policy):
    """Measures the attention of every layer, and changes nothing; ``Combine((AttentionStats(), policy))`` measures
    what another policy makes of it.

    Of one layer's weights, those of ``QUERIES_AT_ONCE`` queries of one sample are held at once.
    """

    def enter(self, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """Note which text tokens follow the image."""
        shape = (trace.num_samples, len(MEASURES), len(KINDS), trace.num_layers)
        statistics = HeadStatistics(torch.full(shape, torch.nan), torch.full(shape, torch.nan))
        layout = row.layout
        queries = layout.text_after_image & (layout.last_visual[layout.owners] >= 0)
        trace.scratch[_SCRATCH] = statistics, layout.origins[queries]
        return row

    def observes(self, layer: int, layout: Layout) -> bool:
        """Every layer."""
        return True

    @torch.no_grad()
    def observe(self, layer: int, inputs: AttentionInputs, trace: ExitTrace) -> None:
        """Measure the layer's attention."""
        layout = inputs.layout
        statistics, text_origins = trace.scratch[_SCRATCH]
        text_queries = layout.to_device(np.isin(layout.origins, text_origins))
        for sequence, (sample, origin) in enumerate(zip(layout.samples, layout.forked_at, strict=True)):
            if origin is not None:
                continue
            for kind, values in self._measure(inputs, sequence, text_queries):
                statistics.mean[sample, :, kind, layer] = values.mean(-1).cpu()
                statistics.variance[sample, :, kind, layer] = values.var(-1, correction=0).cpu()

    def _measure(
        self, inputs: AttentionInputs, sequence: int, text_queries: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """(index of the kind, (M, H) its measures) of each kind that one sequence has."""
        layout = inputs.layout
        start, length = layout.starts[sequence], layout.lengths[sequence]
        at = slice(start, start + length)
        visual = layout.is_visual[at]
        images, text = (start + mask.nonzero().flatten() for mask in (visual, text_queries[at]))
        for queries, kinds in ((images, {0: visual}), (text, {1: visual, 2: ~visual})):
            kinds = {kind: keys for kind, keys in kinds.items() if bool(keys.any())}
            if not len(queries) or not kinds:
                continue
            totals: dict[int, Tensor] = {}
            for some in queries.split(QUERIES_AT_ONCE):
                logits = causal_logits(inputs, some, start, start + length)
                weights = logits.softmax(-1)
                for kind, keys in kinds.items():
                    part = measures_of(logits, weights, keys).sum(-1)
                    totals[kind] = totals[kind] + part if kind in totals else part
            for kind, total in totals.items():
                yield kind, total / len(queries)


def statistics_of(trace: ExitTrace) -> HeadStatistics:
    """The statistics of a prefill that ran under :class:`AttentionStats`.

    Raises:
        ValueError: when it did not.
    """
    if _SCRATCH not in trace.scratch:
        raise ValueError("this prefill was not measured: attach AttentionStats() before it")
    return trace.scratch[_SCRATCH][0]


def measures_of(logits: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """Mass, weight and entropy of some queries on some keys.

    Args:
        logits: (H, R, N) with -inf at keys that a query does not see, weights: their softmax.
        keys: (N,) bool; every query sees one of them at least.

    Returns:
        (M, H, R).
    """
    logits = logits[..., keys]
    mass = weights[..., keys].sum(-1)
    seen = (logits[:1] > float("-inf")).sum(-1)
    # from the logits, since the weights on these keys may all round to zero
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
    return torch.stack([mass, mass / seen, entropy])
