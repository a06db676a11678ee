"""What a gate looks at: means and last states of the text and visual tokens (paper, Eq. 1).

Text states are those of the prompt's text tokens that follow the last visual token; answer tokens never count.
``last_*`` is the last such token, ``mean_*`` the mean of the others (with one token: that token).

Shapes: G sequences, T tokens, D hidden size, K states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

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


@dataclass(frozen=True, eq=False)
class StateIndex:
    """Where the states of a layout's sequences are; made once per layout.

    Attributes:
        sequences: the sequences that have states, ``layout.may_exit``.
        last: {"text", "visual"} -> (n,) index of the last token.
        others: {"text", "visual"} -> ((m,) tokens that the means are over, (m,) the row of ``sequences`` of each,
            (n,) how many).
    """

    sequences: tuple[int, ...]
    last: dict[str, Tensor]
    others: dict[str, tuple[Tensor, Tensor, Tensor]]
    _means: dict[tuple[str, ...], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def means(self, states: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """All of these states as means: (m,) tokens, (m,) the row of (n * K) states of each, (n * K, 1) how many.

        A last state is the mean of one token, so that gathering takes equally few operations for any choice.
        """
        if states not in self._means:
            tokens, rows, counts = [], [], []
            for column, state in enumerate(states):
                which, kind = state.split("_")
                last = self.last[kind]
                alone = (last, torch.arange(len(last), device=last.device), torch.ones_like(last))
                own, ranks, many = alone if which == "last" else self.others[kind]
                tokens.append(own)
                rows.append(ranks * len(states) + column)
                counts.append(many)
            self._means[states] = torch.cat(tokens), torch.cat(rows), torch.stack(counts, 1).view(-1, 1)
        return self._means[states]


_INDICES: WeakKeyDictionary[Layout, StateIndex] = WeakKeyDictionary()


def state_index(layout: Layout) -> StateIndex:
    """The layout's :class:`StateIndex`."""
    index = _INDICES.get(layout)
    if index is None:
        index = _INDICES[layout] = _make_index(layout)
    return index


def _make_index(layout: Layout) -> StateIndex:
    owner, sequences = layout.owners, np.array(layout.may_exit, dtype=np.int64)
    rank = np.full(len(layout.samples), -1)
    rank[sequences] = np.arange(len(sequences))
    members = {
        "visual": (layout.kinds == VISUAL, layout.last_visual),
        "text": (layout.text_after_image, layout.last_text),
    }
    others: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for kind, (member, last) in members.items():
        total = np.bincount(owner[member], minlength=len(rank))
        token = np.arange(len(owner))
        # all but the last; a sequence's only token stands for the mean
        in_mean = member & (rank[owner] >= 0) & ((token != last[owner]) | (total[owner] == 1))
        counts = np.maximum(total[sequences] - 1, 1)
        tokens, ranks, many = (
            layout.to_device(part) for part in (token[in_mean], rank[owner[in_mean]], counts)
        )
        others[kind] = tokens, ranks, many
    return StateIndex(
        sequences=layout.may_exit,
        last={kind: layout.to_device(last[sequences]) for kind, (_, last) in members.items()},
        others=others,
    )


def gather_states(
    row: PackedRow, states: Sequence[str] = PAPER_STATES, attention: Mapping[str, Tensor] | None = None
) -> Tensor:
    """States of the sequences that have them, (n, K * D), detached; which sequences: ``state_index(...).sequences``.

    Sums run in float32, the result has the row's dtype.

    Args:
        attention: what ``attention_states`` gave for this layer; needed where a state comes from attention.
    """
    index, hidden = state_index(row.layout), row.hidden[0].detach()
    of_tokens = tuple(state for state in states if state not in ATTENTION_STATES)
    parts = {}
    if of_tokens:
        tokens, rows, counts = index.means(of_tokens)
        total = torch.zeros(len(counts), hidden.shape[-1], device=hidden.device)
        total.index_add_(0, rows, hidden.index_select(0, tokens).float())
        gathered = (total / counts).to(hidden.dtype).view(-1, len(of_tokens) * hidden.shape[-1])
        if len(of_tokens) == len(states):
            return gathered
        parts = dict(zip(of_tokens, gathered.chunk(len(of_tokens), -1), strict=True))
    assert attention is not None, "attention states need the layer's attention"
    return torch.cat([parts[s] if s in parts else attention[s].to(hidden.dtype) for s in states], dim=-1)
