"""What a decoder is called with, as a packed row: a prompt, tokens that follow it, or one more token of each sample.

Called by :mod:`dyvte.decoding.attach`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dyvte.decoding.cache.ragged import RaggedCache
from dyvte.decoding.packed import Layout, PackedRow, pack
from dyvte.families.stack import next_positions


@dataclass(frozen=True)
class DecoderCall:
    """What a decoder was called with, as :func:`~dyvte.decoding.packed.pack` takes it.

    Attributes:
        embeds: (B, S, D), as they enter the first layer.
    """

    embeds: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    visual_mask: Tensor | None
    blocks: Tensor | None
    extras: Any


def tokens_row(call: DecoderCall, cache: RaggedCache | None, answers: int = 0) -> PackedRow:
    """Pack a call, and note in the cache that its tokens follow what is held there.

    Positions of tokens that follow others continue each sample's full length; only where they have several axes are
    the given ones taken, since new images move them.

    Args:
        answers: the last so many of the S columns are tokens of an answer, whatever their ids.

    Raises:
        ValueError: tokens that follow others have blocks, or as :func:`~dyvte.decoding.packed.pack`.
    """
    batch, columns, _ = call.embeds.shape
    mask, positions, visual, blocks = call.attention_mask, call.position_ids, call.visual_mask, call.blocks
    follows, answer = cache is not None and cache.columns > 0, None
    if answers:
        answer = torch.arange(columns, device=call.embeds.device).expand(batch, -1) >= columns - answers
        visual = None if visual is None or visual.shape[1] != columns else visual & ~answer
        blocks = None if blocks is None else blocks.masked_fill(answer, -1)
    if follows:
        mask = None if mask is None else mask[:, -columns:]
        positions = positions if positions is not None and positions.ndim == 3 else None
        if visual is not None and visual.shape[1] != columns:
            visual = None  # `generate` repeats the prompt's mask; what follows the prompt is text
        if blocks is not None and bool((blocks >= 0).any()):
            raise ValueError(
                "tokens of this model's prompts see each other in both directions, which those of a later turn "
                "cannot: give the whole chat at once, without a cache"
            )
        blocks = None
    given = positions
    row = pack(call.embeds, mask, positions, visual, answer, blocks, call.extras)
    if cache is None:
        return row
    layout = row.layout
    if follows:
        offsets = cache.next_positions
        layout = replace(
            layout,
            positions=layout.positions if given is not None else layout.positions + offsets[layout.owner_ids],
            places=layout.places + np.array(cache.seen)[layout.owners],
        )
    next_of_each = next_positions(layout.positions, layout.owner_ids, len(layout.samples))
    cache.advance(columns, next_of_each, layout.lengths)
    return PackedRow(row.hidden, layout)


def step_row(embeds: Tensor, cache: RaggedCache, extras: Any) -> PackedRow:
    """Pack one more token (B, 1, D) of each sample of a cache, and note it there."""
    batch = embeds.shape[0]
    offsets = cache.next_positions
    layout = replace(Layout.of_single_tokens(offsets, cache.seen), extras=extras)
    cache.advance(1, offsets + 1, [1] * batch)
    # a reshape, not a transpose: with strides of a transpose matrix products would copy their weights
    return PackedRow(embeds.reshape(1, batch, -1), layout)
