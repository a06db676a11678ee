"""What a gate looks at: means and last states of the text and visual tokens (paper, Eq. 1).

Text states are those of the prompt's text tokens that follow the last visual token; answer tokens never count.
``last_*`` is the last such token, ``mean_*`` the mean of the others (with one token: that token).

Shapes: G sequences, T tokens, D hidden size, K states.

Called from most of the project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

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


FILL = 32
"""Lists of tokens are filled up to a multiple of this. A choice, as in :mod:`dyvte.decoding.graphs.rows`."""


@dataclass(frozen=True, eq=False)
class Means:
    """States as means of tokens, on the row's device. A last state is the mean of one token.

    Attributes:
        tokens: (m,) long, those of the first mean, of the second one, and so on.
        order: (m,) long, 0, 1, ...
        starts: (n * K,) long, where each mean's tokens begin.
        counts: (n * K, 1) float32, how many they are.
    """

    tokens: Tensor
    order: Tensor
    starts: Tensor
    counts: Tensor

    def of(self, hidden: Tensor) -> Tensor:
        """Means of states (T, D), (n * K, D). Sums run in float32."""
        # divided here: in the mode "mean" the function also makes a list of each token's bag
        if hidden.dtype == torch.float32:
            return embedding_bag(self.tokens, hidden, self.starts, mode="sum") / self.counts
        some = hidden.index_select(0, self.tokens).float()
        return (embedding_bag(self.order, some, self.starts, mode="sum") / self.counts).to(hidden.dtype)


_MEANS: WeakKeyDictionary[Layout, dict[tuple[tuple[str, ...], bool], Means]] = WeakKeyDictionary()


def means_of(layout: Layout, states: tuple[str, ...], filled: bool = False) -> Means:
    """These states of the sequences that may exit, as means; made once per layout.

    Args:
        filled: fill the list of tokens up to a multiple of :data:`FILL`, so that it has few lengths. What fills it,
            the first token of the row again and again, has one more mean at the end.
    """
    made = _MEANS.setdefault(layout, {})
    if (states, filled) not in made:
        owner, sequences = layout.owners, np.array(layout.may_exit, dtype=np.int64)
        rank = np.full(len(layout.samples), -1)
        rank[sequences] = np.arange(len(sequences))
        tokens, rows = [], []
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
            tokens.append(own)
            rows.append(rank[owner[own]] * len(states) + column)
        row_of = np.concatenate(rows)
        sort = np.argsort(row_of, kind="stable")
        listed, means = np.concatenate(tokens)[sort], len(sequences) * len(states)
        starts = np.searchsorted(row_of[sort], np.arange(means + filled))
        if filled:
            listed = np.concatenate([listed, np.zeros(-len(listed) % FILL, np.int64)])
        counts = np.diff(starts, append=len(listed)).astype(np.float32)[:, None]
        parts = listed, np.arange(len(listed)), starts, counts
        made[states, filled] = Means(*map(layout.to_device, parts))
    return made[states, filled]


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
        gathered = means_of(row.layout, of_tokens).of(hidden).view(-1, len(of_tokens) * hidden.shape[-1])
        if len(of_tokens) == len(states):
            return gathered
        parts = dict(zip(of_tokens, gathered.chunk(len(of_tokens), -1), strict=True))
    assert attention is not None, "attention states need the layer's attention"
    return torch.cat([parts[s] if s in parts else attention[s].to(hidden.dtype) for s in states], dim=-1)
