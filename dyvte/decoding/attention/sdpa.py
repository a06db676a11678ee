"""Plans that call torch's scaled dot product attention (or its plain reference) on runs of equal sequences.

In prefill, neighboring sequences of equal length share a call; a decoding step takes one call for each group of
samples that the cache keeps side by side. Nothing copies the cache.

Called by :mod:`dyvte.decoding.attention.interface`, :mod:`dyvte.decoding.attention.plan` and
:mod:`dyvte.decoding.attention.varlen`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dyvte.decoding.cache.buffer import KVBuffer
from dyvte.decoding.packed import Layout
from dyvte.families.rules import LayerRule

CAUSAL = LayerRule()
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""(S, heads, Q, d) x (S, kv_heads, K, d) -> (S, heads, Q, d); queries are the last Q tokens.

The mask (S, 1, Q or 1, K) says which keys count (bool), or what to add to the scores (float); None is causal."""


class Prefill:
    """Sequences that attend to themselves."""

    def __init__(self, attend: Attend, layout: Layout, rule: LayerRule = CAUSAL) -> None:
        self._attend = attend
        self._runs: list[tuple[slice, int, Tensor | None]] = []
        blocks = layout.block_ids if rule.blocks else None
        limited = blocks is not None or not rule.sees_all(layout.extent)
        for start, length, count in layout.runs:
            at = slice(start, start + length * count)
            bias = None if layout.bias is None else layout.bias[at].unflatten(0, (count, length))
            mask = _biased_mask(bias, length)
            if limited:
                places = layout.place_ids[at].unflatten(0, (count, length))
                own = None if blocks is None else blocks[at].unflatten(0, (count, length))
                mask = _both(mask, rule.mask(places, places, own, own))
            self._runs.append((at, count, mask))

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, held: KVBuffer | None, scaling: float
    ) -> Tensor:
        outs = []
        for at, count, mask in self._runs:
            queries, keys, values = (_batched(states[:, :, at], count) for states in (query, key, value))
            outs.append(_rowed(self._attend(queries, keys, values, mask, scaling)))
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)


class Filled:
    """:class:`Prefill` for rows of one shape, in which sequences may have any lengths up to the longest.

    Each sequence is copied to a slice of its own, whose end repeats the sequence's first token. Causality hides that
    end, and the row's filler is not copied at all.

    Args:
        sequences: in the row, besides its filler.
        tokens: of the row, filled up.
        longest: sequence that fits.
    """

    def __init__(
        self, attend: Attend, sequences: int, tokens: int, longest: int, device: torch.device
    ) -> None:
        self._attend, self._longest = attend, longest
        into = torch.zeros(sequences * longest, dtype=torch.long, device=device)  # a token for each place
        back = torch.zeros(tokens, dtype=torch.long, device=device)  # a place for each token
        self.buffers = into, back

    def load(self, layout: Layout) -> None:
        """Take over where the sequences lie."""
        starts, lengths = np.array(layout.starts)[:, None], np.array(layout.lengths)[:, None]
        at = np.arange(self._longest)
        into = np.where(at < lengths, starts + at, starts).ravel()
        within = np.arange(len(layout.owners)) - starts[layout.owners, 0]
        self.buffers[0].copy_(layout.to_device(into))
        self.buffers[1][: len(within)].copy_(layout.to_device(layout.owners * self._longest + within))

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, held: KVBuffer | None, scaling: float
    ) -> Tensor:
        into, back = self.buffers
        sequences = len(into) // self._longest
        queries, keys, values = (
            _batched(states.index_select(2, into), sequences) for states in (query, key, value)
        )
        return _rowed(self._attend(queries, keys, values, None, scaling)).index_select(1, back)


class Chunk:
    """Sequences that continue what the cache holds of their samples, one call for each."""

    def __init__(self, attend: Attend, layout: Layout, rule: LayerRule = CAUSAL) -> None:
        self._attend, self._layout, self._rule = attend, layout, rule
        self._limited = not rule.sees_all(layout.extent)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, held: KVBuffer | None, scaling: float
    ) -> Tensor:
        assert held is not None, "a chunk continues a cache"
        outs = []
        for sample, (start, length) in enumerate(zip(self._layout.starts, self._layout.lengths, strict=True)):
            keys, values = held.sequence(sample)
            mask = _biased_mask(held.sequence_bias(sample), length)
            if self._limited:
                places = self._layout.place_ids[None, start : start + length]
                mask = _both(mask, self._rule.mask(places, held.sequence_places(sample)[None]))
            queries = query[:, :, start : start + length]
            outs.append(_rowed(self._attend(queries, keys[None], values[None], mask, scaling)))
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)


class Step:
    """One token per sample against all that the cache holds of it."""

    def __init__(self, attend: Attend, layout: Layout, rule: LayerRule = CAUSAL) -> None:
        self._attend, self._layout, self._rule = attend, layout, rule
        self._limited = not rule.sees_all(layout.extent)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, held: KVBuffer | None, scaling: float
    ) -> Tensor:
        assert held is not None, "a step continues a cache"
        groups, queries = held.groups(), query.transpose(0, 2)
        batches = held.batches(self._near(groups.order) if self._limited else None)
        if groups.order is not None:
            queries = queries[groups.order]
        if len(batches) == 1:
            out = self._attend(queries, *batches[0], scaling)
        else:
            parts = queries.split([len(keys) for keys, _, _ in batches])
            pairs = zip(parts, batches, strict=True)
            out = torch.cat([self._attend(part, *batch, scaling) for part, batch in pairs])
        return (out if groups.inverse is None else out[groups.inverse]).permute(2, 0, 1, 3)

    def _near(self, order: Tensor | None) -> Callable[[Tensor, slice], Tensor]:
        """Which keys the layer's window lets the samples see; see :meth:`Groups.batches`."""
        places = self._layout.place_ids if order is None else self._layout.place_ids[order]
        return lambda keys, samples: self._rule.near(places[samples, None, None, None], keys)


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """An :data:`Attend` by torch's fused kernels."""
    square = mask is None and query.shape[2] == key.shape[2]
    if mask is None and not square:
        mask = _causal_mask(query.shape[2], key.shape[2], query.device)
    elif mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=square and query.shape[2] > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
) -> Tensor:
    """An :data:`Attend` by plain matrix products, softmax in float32; see ``LayerRule.softcap``."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    mask = _causal_mask(query.shape[2], key.shape[2], query.device) if mask is None else mask
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(value) @ value


def _batched(states: Tensor, samples: int) -> Tensor:
    """(1, heads, samples * length, head_dim) -> (samples, heads, length, head_dim), a view."""
    return states[0].unflatten(1, (samples, -1)).transpose(0, 1)


def _rowed(states: Tensor) -> Tensor:
    """(samples, heads, length, head_dim) -> (1, samples * length, heads, head_dim)."""
    return states.transpose(1, 2).flatten(0, 1)[None]


def _both(mask: Tensor | None, seen: Tensor) -> Tensor:
    """A mask of a bias (float) or None, and which keys are seen (bool), as one mask."""
    return seen if mask is None else mask.masked_fill(~seen, float("-inf"))


def _causal_mask(queries: int, keys: int, device: torch.device) -> Tensor | None:
    """Lower-right causal mask (queries, keys), or None where every query sees every key."""
    if queries == 1:
        return None
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _biased_mask(bias: Tensor | None, queries: int) -> Tensor | None:
    """A bias per key (S, K) -> (S, 1, queries, K), -inf at keys that come later; None for None."""
    if bias is None:
        return None
    mask = bias[:, None, None].expand(-1, 1, queries, -1)
    causal = _causal_mask(queries, bias.shape[1], bias.device)
    return mask if causal is None else mask.masked_fill(~causal, float("-inf"))
