"""Decoding steps, and the layers after an exit, recorded once as CUDA graphs and replayed.

Where few tokens are left a layer is bound by launches: the host takes longer to issue some twenty small kernels than
the device to run them. A recorded graph is issued at once. Its shapes, its memory and whatever the host decided are
those of the recording, so:

- a decoding step is recorded against the cache's buffers, of which it reads all room through a mask, and replayed
  until some sample's room is full or the cache is changed otherwise;
- layers over text alone are recorded one by one, for rows in which every sample has equally many tokens. Samples are
  filled up to a multiple of :data:`BUCKET`; what fills them comes after their own tokens, so no token sees it.

Nothing is recorded for a shape, or an arrangement of the cache, that has not come up before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor

from dyvte.decoding import attention
from dyvte.decoding.cache import RaggedCache
from dyvte.decoding.packed import Layout, PackedRow

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Records the device's work of a function without doing it; gives a function that does it."""

BUCKET = 32
"""Text-only samples are filled up to a multiple of this many tokens."""
MOST_TOKENS = 512
"""Rows longer than this, filled up, are bound by arithmetic rather than by launches: they are not recorded."""
STEPS_BEFORE = 2
"""Steps taken as usual before one is recorded, which costs about as much: short answers are not worth a recording."""


class CudaGraphs:
    """Records with ``torch.cuda.CUDAGraph``, on the current device.

    Results of a graph have to be copied before another one is replayed: all share one pool of memory. This does what
    ``torch.cuda.graph`` does, but for collecting garbage and handing all cached memory back each time.
    """

    def __init__(self) -> None:
        self._stream: Any = None
        self._pool: Any = None

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """The recorded work."""
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph.replay


class Graphs:
    """What was recorded of the decoders it is used with: to be made once, and handed to every ``attach``.

    Args:
        record: how to record; CUDA graphs by default.

    Attributes:
        recorded, replayed: how often.
    """

    def __init__(self, record: Record | None = None) -> None:
        self._record = CudaGraphs() if record is None else record
        self._of: WeakKeyDictionary[Any, _OfDecoder] = WeakKeyDictionary()
        self.recorded = self.replayed = 0

    def check(self, decoder: Any) -> None:
        """Raise ValueError when the decoder's work cannot be recorded.

        It has to be on one CUDA device, with rotary embeddings that do not depend on how long a prompt is.
        """
        kind = getattr(decoder.rotary_emb, "rope_type", "default")
        if kind in ("dynamic", "longrope"):
            raise ValueError(
                f"rotary embeddings of type {kind!r} look at lengths on the host: graphs cannot be used"
            )
        devices = {parameter.device for parameter in decoder.parameters()}
        if isinstance(self._record, CudaGraphs) and (
            len(devices) > 1 or {device.type for device in devices} != {"cuda"}
        ):
            names = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"CUDA graphs need the whole decoder on one CUDA device, this one is on {names}")

    def step(
        self, decoder: Any, row: PackedRow, cache: RaggedCache, run: Callable[..., PackedRow]
    ) -> PackedRow:
        """A decoding step of ``row``, one token per sample; ``run(decoder, row, cache=cache)`` does it as usual."""
        own = self._own(decoder)
        step = own.step
        if step is None or not step.continues(row, cache):
            cache.make_static()
            own.step = _Step(cache)
            return own.step.note(run(decoder, row, cache=cache))
        if step.replay is None:
            if step.seen < STEPS_BEFORE:
                return step.note(run(decoder, row, cache=cache))
            step.hidden, step.positions = row.hidden.clone(), row.layout.positions.clone()
            layout = Layout.of_single_tokens(step.positions)

            def work() -> None:
                step.out = run(decoder, PackedRow(step.hidden, layout), cache=cache).hidden

            step.replay = self._recorded(work, row.hidden)  # the cache has counted the step by now
        else:
            step.hidden.copy_(row.hidden)
            step.positions.copy_(row.layout.positions)
            cache.count_step()
        self._play(step.replay)
        return PackedRow(step.out.clone(), row.layout)

    def text_layers(
        self, decoder: Any, first: int, row: PackedRow, cache: RaggedCache | None, kernel: str
    ) -> PackedRow | None:
        """The row after the last layer, computed from layer ``first`` on.

        None where that has to be done as usual: for rows that are long, hold more than plain text or continue a
        cache, and for the first row of a shape. No policy is asked between the layers: nothing is left to leave.
        """
        own, layout = self._own(decoder), row.layout
        samples, bucket = len(layout.samples), -(-max(layout.lengths) // BUCKET) * BUCKET
        continued = cache is not None and cache.layers[first].is_initialized
        if any(layout.visual) or layout.sizes is not None or continued or samples * bucket > MOST_TOKENS:
            return None
        key = samples, bucket, kernel, row.hidden.dtype, torch.is_inference_mode_enabled()
        if key not in own.buckets:
            own.buckets[key] = None  # seen once
            return None
        shape = own.buckets[key]
        if shape is None:
            shape = own.buckets[key] = _Bucket.of(decoder, row, bucket)
        within = np.arange(len(layout.segments)) - np.array(layout.starts)[layout.segments]
        places = layout.to_device(layout.segments * bucket + within)
        shape.hidden.zero_().index_copy_(1, places, row.hidden)
        shape.positions.zero_().index_copy_(0, places, layout.positions)
        rope = decoder.rotary_emb(shape.hidden, position_ids=shape.positions[None])
        for buffer, fresh in zip(shape.rope, rope, strict=True):
            buffer.copy_(fresh)
        for index in range(first, len(decoder.layers)):
            if index not in shape.layers:
                shape.layers[index] = self._record_layer(decoder.layers[index], shape, kernel)
            replay, states = shape.layers[index]
            self._play(replay)
            if cache is not None:
                keys, values = (part.index_select(2, places) for part in states)
                cache.layers[index].append(keys, values, layout.lengths)
        return PackedRow(shape.hidden.index_select(1, places), layout)

    def _record_layer(self, layer: Any, shape: _Bucket, kernel: str):
        """What replays a layer in place on the bucket's states, and the tensors where keys and values will be."""
        states: list[Tensor] = []

        def observe(index: int, query: Tensor, key: Tensor, value: Tensor) -> None:
            states.extend((key, value))

        def work() -> None:
            hidden = layer(
                shape.hidden,
                attention_mask=None,
                position_ids=shape.positions[None],
                position_embeddings=shape.rope,
                packed=attention.PackedContext(shape.layout, None, kernel, observe),
            )
            shape.hidden.copy_(hidden)

        return self._recorded(work, shape.hidden), states

    def _own(self, decoder: Any) -> _OfDecoder:
        return self._of.setdefault(decoder, _OfDecoder())

    def _recorded(self, work: Callable[[], None], on: Tensor) -> Callable[[], None]:
        self.recorded += 1
        with torch.cuda.device_of(on):
            return self._record(work)

    def _play(self, replay: Callable[[], None]) -> None:
        self.replayed += 1
        replay()


@dataclass(eq=False)
class _OfDecoder:
    """What was recorded of one decoder: its last decoding step, and its layers by shape (None: seen once)."""

    step: _Step | None = None
    buckets: dict[tuple, _Bucket | None] = field(default_factory=dict)


class _Step:
    """A decoding step of one arrangement of one cache.

    Attributes:
        seen: steps taken as usual.
        replay: the recorded step; None so far.
        hidden, positions, out: what it reads and writes.
    """

    def __init__(self, cache: RaggedCache) -> None:
        self._cache = ref(cache)
        self._arrangement: list[object] = []
        self.seen = 0
        self.replay: Callable[[], None] | None = None
        self.hidden: Any = None
        self.positions: Any = None
        self.out: Any = None

    def note(self, row: PackedRow) -> PackedRow:
        """Remember the arrangement that a step as usual has left, and pass its result on."""
        cache = self._cache()
        assert cache is not None
        self._arrangement = cache.arrangement
        self.seen += 1
        return row

    def continues(self, row: PackedRow, cache: RaggedCache) -> bool:
        """Whether the arrangement is still the same, and has room for one more token of each sample."""
        return (
            cache is self._cache()
            and (self.hidden is None or self.hidden.shape == row.hidden.shape)
            and all(old is new for old, new in zip(self._arrangement, cache.arrangement, strict=True))
            and cache.free_steps > 0
        )


@dataclass(eq=False)
class _Bucket:
    """Layers over text alone for one number of samples of one length.

    Attributes:
        hidden: (1, samples * length, D), what each layer reads and overwrites; positions (samples * length,) long.
        rope: cosines and sines, (1, samples * length, head_dim).
        layers: by index, what replays the layer, and where it leaves keys and values.
    """

    hidden: Tensor
    positions: Tensor
    rope: tuple[Tensor, ...]
    layout: Layout
    layers: dict[int, tuple[Callable[[], None], list[Tensor]]] = field(default_factory=dict)

    @classmethod
    def of(cls, decoder: Any, row: PackedRow, length: int) -> _Bucket:
        """Empty buffers for rows of as many samples, of this length each."""
        tokens = len(row.layout.samples) * length
        hidden = row.hidden.new_zeros(1, tokens, row.hidden.shape[2])
        positions = row.layout.positions.new_zeros(tokens)
        rope = tuple(part.clone() for part in decoder.rotary_emb(hidden, position_ids=positions[None]))
        layout = Layout.of_text(positions, length)
        _ = layout.offsets  # on the device before anything is recorded
        return cls(hidden, positions, rope, layout)
