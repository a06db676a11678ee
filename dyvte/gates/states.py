"""What a gate looks at: means and last states of the text and visual tokens (paper, Eq. 1).

Text states are those of the prompt's text tokens that follow the last visual token; answer tokens never count.
``last_*`` is the last such token, ``mean_*`` the mean of the others (with one token: that token).

Shapes: G sequences, T tokens, D hidden size, K states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from dyvte.decoding.packed import VISUAL, Layout, PackedRow

STATES = ("mean_visual", "last_visual", "mean_text", "last_text")
PAPER_STATES = ("mean_text", "last_text")
ATTENTION_STATES = ("image_self", "cross", "text_self")
"""Attention statistics as states (paper, Table 6); see :mod:`dyvte.gates.attention_states`."""


def check_states(states: Sequence[str]) -> tuple[str, ...]:
    """The states as a tuple.

    Raises:
        ValueError: when one is unknown or repeated, or there is none.
    """
    states = tuple(states)
    known = STATES + ATTENTION_STATES
    if not states or len(set(states)) != len(states) or not set(states) <= set(known):
        raise ValueError(f"states must be one or more of {', '.join(known)}, each once; got {states}")
    return states


def reads_attention(states: Sequence[str]) -> bool:
    """Whether some of the states come from attention, which has to be observed for them."""
    return not set(states).isdisjoint(ATTENTION_STATES)


Means = tuple[Tensor, Tensor, Tensor]
_MEANS: WeakKeyDictionary[Layout, dict[tuple[str, ...], Means]] = WeakKeyDictionary()


def _means(layout: Layout, states: tuple[str, ...]) -> Means:
    """These states as means: (m,) tokens, (m,) the row of (n * K) states of each, (n * K, 1) how many.

    A last state is the mean of one token, so that gathering takes equally few operations for any choice. Made once
    per layout.
    """
    made = _MEANS.setdefault(layout, {})
    if states not in made:
        owner, sequences = layout.owners, np.array(layout.may_exit, dtype=np.int64)
        rank = np.full(len(layout.samples), -1)
        rank[sequences] = np.arange(len(sequences))
        tokens, rows, counts = [], [], []
        for column, state in enumerate(states):
            which, _, kind = state.partition("_")
            visual = kind == "visual"
            last = layout.last_visual if visual else layout.last_text
            own = last[sequences]
            if which == "mean":
                member = layout.kinds == VISUAL if visual else layout.text_after_image
                total = np.bincount(owner[member], minlength=len(rank))
                # all but the last; a sequence's only token stands for the mean
                counted = (np.arange(len(owner)) != last[owner]) | (total[owner] == 1)
                own = np.flatnonzero(member & (rank[owner] >= 0) & counted)
            ranks = rank[owner[own]]
            tokens.append(own)
            rows.append(ranks * len(states) + column)
            counts.append(np.bincount(ranks, minlength=len(sequences)))
        parts = np.concatenate(tokens), np.concatenate(rows), np.stack(counts, 1).reshape(-1, 1)
        made[states] = layout.to_device(parts[0]), layout.to_device(parts[1]), layout.to_device(parts[2])
    return made[states]


FILL = 32
"""Lists of tokens are filled up to a multiple of this. A choice, as in :mod:`dyvte.decoding.graphs.rows`."""


def filled_means(layout: Layout, states: tuple[str, ...]) -> Means:
    """As :func:`_means`, in few shapes: the list of tokens is filled up, and what fills it has a mean of its own."""
    tokens, rows, counts = _means(layout, states)
    more = (0, -len(tokens) % FILL)  # the first token of the row, again and again
    return pad(tokens, more), pad(rows, more, value=len(counts)), pad(counts, (0, 0, 0, 1), value=1)


def mean_states(hidden: Tensor, tokens: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
    """Means of states (T, D) as :func:`_means` lists them, (n * K, D). Sums run in float32."""
    total = torch.zeros(len(counts), hidden.shape[-1], device=hidden.device)
    total.index_add_(0, rows, hidden.index_select(0, tokens).float())
    return (total / counts).to(hidden.dtype)


def gather_states(
    row: PackedRow, states: Sequence[str] = PAPER_STATES, attention: Mapping[str, Tensor] | None = None
) -> Tensor:
    """States of the sequences that have them (``row.layout.may_exit``), (n, K * D), detached.

    Sums run in float32, the result has the row's dtype.

    Args:
        attention: what ``attention_states`` gave for this layer; needed where a state comes from attention.
    """
    hidden = row.hidden[0].detach()
    of_tokens = tuple(state for state in states if state not in ATTENTION_STATES)
    parts = {}
    if of_tokens:
        tokens, rows, counts = _means(row.layout, of_tokens)
        gathered = mean_states(hidden, tokens, rows, counts).view(-1, len(of_tokens) * hidden.shape[-1])
        if len(of_tokens) == len(states):
            return gathered
        parts = dict(zip(of_tokens, gathered.chunk(len(of_tokens), -1), strict=True))
    assert attention is not None, "attention states need the layer's attention"
    return torch.cat([parts[s] if s in parts else attention[s].to(hidden.dtype) for s in states], dim=-1)
