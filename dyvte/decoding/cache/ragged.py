"""A ``transformers`` cache in which each layer holds, for each sample, just the tokens it saw.

Called throughout :mod:`dyvte.decoding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from dyvte.decoding.cache.buffer import KVBuffer


class RaggedLayer(CacheLayerMixin):
    """One layer of :class:`RaggedCache`: a :class:`KVBuffer` from the first :meth:`append` on."""

    is_sliding = False
    is_croppable = True

    def __init__(self) -> None:
        self._buffer: KVBuffer | None = None
        self._static = False
        super().__init__()

    @property
    def buffer(self) -> KVBuffer:
        """The buffer; an error before anything was appended."""
        assert self._buffer is not None, "nothing was appended to this layer yet"
        return self._buffer

    def append(
        self,
        keys: Tensor,
        values: Tensor,
        lengths: Sequence[int],
        bias: Tensor | None = None,
        places: Tensor | None = None,
    ) -> None:
        """Add a packed row of new tokens.

        Args:
            keys, values: (1, heads, T, head_dim).
            lengths: per sample.
            bias: (T,) float32, added to the scores of each key; zeros by default.
            places: (T,) long, of layers with a window; either at every call or never.
        """
        if self._buffer is None:
            self._buffer = KVBuffer(keys[0], values[0], lengths, bias, places, self._static)
            self.is_initialized = True
        else:
            self._buffer.append(keys, values, lengths, bias, places)

    # transformers sets `keys` and `values` to None at the start, and moves them when a cache is offloaded

    @property
    def keys(self) -> Any:
        """(heads, C, head_dim), unused capacity included; None before anything was appended."""
        return None if self._buffer is None else self._buffer.keys

    @keys.setter
    def keys(self, keys: Tensor | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._replace("keys", keys)

    @property
    def values(self) -> Any:
        """As :attr:`keys`."""
        return None if self._buffer is None else self._buffer.values

    @values.setter
    def values(self, values: Tensor | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._replace("values", values)

    def _replace(self, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            raise TypeError(
                "a RaggedCache cannot be offloaded or refilled: it knows where each sample's tokens are"
            )

    @property
    def lengths(self) -> list[int]:
        """Tokens held, per sample."""
        return [] if self._buffer is None else self._buffer.lengths

    def make_static(self) -> None:
        """See :attr:`KVBuffer.static`."""
        self._static = True
        if self._buffer is not None:
            self._buffer.make_static()

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held, without unused capacity."""
        return 0 if self._buffer is None else self._buffer.nbytes

    @property
    def allocated_nbytes(self) -> int:
        """Bytes of the buffers, with unused capacity."""
        return 0 if self._buffer is None else self._buffer.allocated_nbytes

    # what transformers calls on any cache layer

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the first :meth:`append` takes the tensors as they are."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
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
        next_positions: (samples,) long, the position of the next token of each sample: it follows the full prompt,
            whatever left the cache.
        seen: per sample, on the host: tokens of the prompt and after it, whatever left the cache.
    """

    layers: list[RaggedLayer]  # type: ignore[assignment] - narrower than the base class has it

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[RaggedLayer() for _ in range(num_layers)])
        self.columns = 0
        self.next_positions = torch.zeros(0, dtype=torch.long)
        self.seen: list[int] = []

    @classmethod
    def of(cls, given: Cache | None, num_layers: int) -> RaggedCache:
        """The cache that a decoder was given, or a new one.

        An empty ``DynamicCache`` becomes a ragged one itself, so that it is filled for whoever holds it.

        Raises:
            ValueError: it is of another kind, or holds tokens already.
        """
        if isinstance(given, RaggedCache):
            return given
        if given is None:
            return cls(num_layers)
        check_cache(given)
        given.__class__ = cls
        cls.__init__(given, num_layers)  # type: ignore[arg-type] - it is one now
        return given  # type: ignore[return-value]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Padded columns seen so far, the same for every layer."""
        return self.columns

    def advance(self, columns: int, next_positions: Tensor, lengths: Sequence[int]) -> None:
        """Note that ``columns`` more columns, ``lengths`` tokens, were computed, and each sample's next position."""
        seen = self.seen or [0] * len(lengths)
        self.seen = [before + more for before, more in zip(seen, lengths, strict=True)]
        self.columns += columns
        self.next_positions = next_positions

    def make_static(self) -> None:
        """From now on steps have the same shapes until a slice is full; see :attr:`KVBuffer.static`."""
        for layer in self.layers:
            layer.make_static()

    @property
    def epoch(self) -> int:
        """Changes whenever later steps will read or write other places than before; no other cache has had it."""
        return max(layer.buffer.epoch for layer in self.layers)  # epochs only grow, and each is given once

    @property
    def free_steps(self) -> int:
        """Steps that every layer can take in place."""
        return min(layer.buffer.free_steps for layer in self.layers)

    def count_step(self) -> None:
        """Note that a replayed graph has added one token to every sample of every layer."""
        for layer in self.layers:
            layer.buffer.count_step()

    def forget_step(self, kv_lengths: Sequence[Sequence[int]]) -> None:
        """Note that the layers hold what they held before: a step was noted while its recording failed.

        Args:
            kv_lengths: :attr:`kv_lengths` before the step.
        """
        for layer, lengths in zip(self.layers, kv_lengths, strict=True):
            if layer.lengths != lengths:
                layer.buffer.crop(1)

    @property
    def kv_lengths(self) -> list[list[int]]:
        """Tokens held, [layer][sample]."""
        return [layer.lengths for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def allocated_nbytes(self) -> int:
        """Bytes of the buffers that hold them, with unused capacity."""
        return sum(layer.allocated_nbytes for layer in self.layers)

    @property
    def is_initialized(self) -> bool:
        """Whether a prompt was computed: some models ask this to tell prefill from decoding."""
        return self.columns > 0

    def _select(self, samples: Tensor) -> None:
        on_host: list[int] = samples.tolist()  # read once, not once a layer
        for layer in self.layers:
            layer.buffer.select(on_host)
        self.next_positions = self.next_positions[samples.to(self.next_positions.device)]
        self.seen = [self.seen[sample] for sample in on_host]

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
        """Forget the last tokens of every sample.

        Args:
            tokens_to_remove: a negative number of them; 0 for none; or, positive as in older versions of
                transformers, the columns to keep.

        Raises:
            ValueError: a sample would be left without a token; nothing is removed then.
        """
        removed = -tokens_to_remove if tokens_to_remove <= 0 else max(self.columns - tokens_to_remove, 0)
        if removed == 0:
            return
        shortest = min(min(layer.lengths) for layer in self.layers)
        if removed >= shortest:
            raise ValueError(f"cannot remove {removed} tokens: a sample holds only {shortest} in some layer")
        for layer in self.layers:
            layer.buffer.crop(removed)
        self.columns -= removed
        self.next_positions = self.next_positions - removed
        self.seen = [tokens - removed for tokens in self.seen]


def check_cache(given: object) -> None:
    """Raise ValueError for a cache that cannot be, or become, a :class:`RaggedCache`."""
    if given is None or isinstance(given, RaggedCache):
        return
    name = type(given).__name__
    if type(given) is not DynamicCache or given.offloading:
        raise ValueError(
            f"a policy keeps other tokens in each layer, which this {name} cannot hold"
            f"{' offloaded' * isinstance(given, DynamicCache)}: leave it out, or give an empty DynamicCache()"
        )
    if given.get_seq_length() > 0:
        raise ValueError(f"this {name} was filled before the policy was attached: start from an empty cache")
