"""A KV cache in which each layer holds, for each sample, just the tokens it saw.

Keys and values of a layer lie in one buffer (heads, C, head_dim); every sample owns a stretch of it. After prefill
the stretches have no slack: the bytes held are those of the trace. The first decoding step gives each stretch room
to grow, and a step then writes one token per sample in place.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 64
"""Tokens of room added to each sample's stretch when it is full; a stretch grows by a quarter if that is more."""


class RaggedLayer(CacheLayerMixin):
    """One layer's keys and values, (heads, C, head_dim) each.

    Attributes:
        starts, lengths, capacities: per sample, on the host: where its stretch begins, tokens held, room.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[int] = []
        self.lengths: list[int] = []
        self.capacities: list[int] = []

    @property
    def uniform(self) -> bool:
        """Whether all samples hold equally many tokens in stretches of equal room."""
        return len(set(self.lengths)) == 1 and len(set(self.capacities)) == 1

    def append(self, keys: Tensor, values: Tensor, lengths: tuple[int, ...]) -> None:
        """Add a packed row of new tokens: keys and values (1, heads, T, head_dim), ``lengths`` per sample."""
        if not self.is_initialized:
            self.keys, self.values, self.is_initialized = keys[0], values[0], True
            self.lengths = self.capacities = list(lengths)
            self.starts = _starts(self.capacities)
            return
        grown = [held + new for held, new in zip(self.lengths, lengths, strict=True)]
        if any(total > room for total, room in zip(grown, self.capacities, strict=True)):
            self._make_room(grown)
        index = _stretches(
            [start + held for start, held in zip(self.starts, self.lengths, strict=True)],
            lengths,
            keys.device,
        )
        self.keys.index_copy_(1, index, keys[0])
        self.values.index_copy_(1, index, values[0])
        self.lengths = grown

    def _make_room(self, totals: list[int]) -> None:
        capacities = [total + max(GROWTH, total // 4) for total in totals]
        starts = _starts(capacities)
        old = _stretches(self.starts, self.lengths, self.keys.device)
        new = _stretches(starts, self.lengths, self.keys.device)

        def move(buffer: Tensor) -> Tensor:
            wider = buffer.new_empty(buffer.shape[0], sum(capacities), buffer.shape[2])
            return wider.index_copy_(1, new, buffer.index_select(1, old))

        self.keys, self.values = move(self.keys), move(self.values)
        self.starts, self.capacities = starts, capacities

    def segment(self, sample: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one sample, views of (heads, tokens, head_dim)."""
        at = slice(self.starts[sample], self.starts[sample] + self.lengths[sample])
        return self.keys[:, at], self.values[:, at]

    def batched(self) -> tuple[Tensor, Tensor]:
        """Where :attr:`uniform`: keys and values as views of (samples, heads, tokens, head_dim)."""
        samples, room, held = len(self.lengths), self.capacities[0], self.lengths[0]

        def view(buffer: Tensor) -> Tensor:
            return buffer.unflatten(1, (samples, room))[:, :, :held].transpose(0, 1)

        return view(self.keys), view(self.values)

    def packed(self) -> tuple[Tensor, Tensor]:
        """Keys and values without slack, (heads, sum of lengths, head_dim); a copy where there is slack."""
        if self.lengths == self.capacities:
            return self.keys, self.values
        index = _stretches(self.starts, self.lengths, self.keys.device)
        return self.keys.index_select(1, index), self.values.index_select(1, index)

    def select(self, samples: list[int]) -> None:
        """Hold these samples, in this order; a sample may occur more than once (beams)."""
        starts = [self.starts[s] for s in samples]
        capacities = [self.capacities[s] for s in samples]
        index = _stretches(starts, capacities, self.keys.device)
        self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
        self.lengths, self.capacities = [self.lengths[s] for s in samples], capacities
        self.starts = _starts(capacities)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens of every sample."""
        self.lengths = [held + tokens_to_remove for held in self.lengths]

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens held, without room to grow."""
        if not self.is_initialized:
            return 0
        heads, _, width = self.keys.shape
        return 2 * sum(self.lengths) * heads * width * self.keys.element_size()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the first :meth:`append` takes the tensors as they are."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Not how this cache is filled: it must know which token belongs to which sample."""
        raise TypeError("a RaggedCache is filled by the packed layer loop; attach the model it came from")

    def get_seq_length(self) -> int:
        """Tokens held by the longest sample."""
        return max(self.lengths, default=0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens after adding ``query_length``, offset 0)."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: no maximum."""
        return -1

    get_max_cache_shape = get_max_length  # the name before transformers 5.20


class RaggedCache(Cache):
    """Per layer and sample just the tokens that were computed there; a ``transformers`` cache for ``generate``.

    Attributes:
        columns: padded columns seen so far, the length that ``generate`` counts in.
        next_positions: (samples,) long, the position of the next token of each sample: it goes on from the full
            prompt's length whatever left the cache.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[RaggedLayer() for _ in range(num_layers)])
        self.columns = 0
        self.next_positions: Tensor | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Padded columns seen so far, the same for every layer."""
        return self.columns

    def advance(self, columns: int, next_positions: Tensor) -> None:
        """Note that ``columns`` more columns were computed, and each sample's next position."""
        self.columns += columns
        self.next_positions = next_positions

    @property
    def kv_lengths(self) -> list[list[int]]:
        """Tokens held, [layer][sample]."""
        return [list(layer.lengths) for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held."""
        return sum(layer.nbytes for layer in self.layers)

    def _select(self, samples: Tensor) -> None:
        for layer in self.layers:
            layer.select(samples.tolist())
        self.next_positions = self.next_positions[samples.to(self.next_positions.device)]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Hold the samples at ``beam_idx`` (samples,)."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the samples at ``indices``."""
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample ``repeats`` times."""
        self._select(torch.arange(len(self.next_positions)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of every sample: a negative number of them, or the columns to keep."""
        removed = -tokens_to_remove if tokens_to_remove < 0 else max(self.columns - tokens_to_remove, 0)
        for layer in self.layers:
            if removed >= min(layer.lengths):
                raise ValueError(f"cannot remove {removed} tokens: a sample holds only {min(layer.lengths)}")
            layer.crop(-removed)
        self.columns -= removed
        self.next_positions = self.next_positions - removed


def _starts(capacities: list[int]) -> list[int]:
    starts, at = [], 0
    for capacity in capacities:
        starts.append(at)
        at += capacity
    return starts


def _stretches(starts: list[int], lengths, device) -> Tensor:
    """Indices ``start .. start + length - 1`` of all stretches, one after another."""
    if all(length == 1 for length in lengths):
        return torch.tensor(starts, device=device)
    return torch.cat(
        [
            torch.arange(start, start + length, device=device)
            for start, length in zip(starts, lengths, strict=True)
        ]
    )
