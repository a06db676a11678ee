"""Decoding steps, and the layers after an exit, recorded once as CUDA graphs and replayed.

Where few tokens are left a layer is bound by launches: the host takes longer to issue some twenty small kernels than
the device to run them. A recorded graph is issued at once. Its shapes, its memory and whatever the host decided are
those of the recording, so:

- a decoding step is recorded against the cache's buffers, of which it reads all capacity through a mask, and replayed
  until a sample's slice is full or the cache is changed otherwise;
- layers over text alone are recorded one by one, for rows in which every sample has equally many tokens. Samples are
  filled up to a multiple of :data:`BUCKET`; what fills them comes after their own tokens, so no token sees it.

Nothing is recorded for a shape, or an epoch of the cache, that has not come up before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from dyvte.decoding.attention.interface import AttentionInputs, PackedContext
from dyvte.decoding.attention.plan import make_plan
from dyvte.decoding.cache.ragged import RaggedCache
from dyvte.decoding.loop import Layers
from dyvte.decoding.packed import Layout, PackedRow
from dyvte.families.protocols import Decoder
from dyvte.families.stack import Stack

BUCKET = 32
"""Text-only samples are filled up to a multiple of this many tokens. A choice: it wastes 16 tokens on average where
60 to 100 are usual, and two or three buckets serve a benchmark."""
MOST_TOKENS = 512
"""Rows longer than this, filled up, run as usual. One layer of LLaVA-1.5-7B takes 0.36 ms to launch on an H100 and
0.68 ms to compute over 636 tokens (docs/benchmarks/h100-before): near 350 tokens the two are equal."""
STEPS_BEFORE = 2
"""Steps taken as usual before one is recorded, which costs about as much: short answers are not worth a recording."""
MOST_BYTES = 256 * 2**20
"""Static buffers of all buckets together; beyond it the one that was not used for longest is given up. A choice: a
bucket of 128 tokens of LLaVA-1.5-7B holds 3 MiB, so some eighty fit."""

Replay = Callable[[], None]
Record = Callable[[Callable[[], None]], Replay]
"""Records the device's work of a function without doing it; gives a function that does it."""


class CudaGraphs:
    """Records with ``torch.cuda.CUDAGraph``, on the current device.

    Results of a graph have to be copied before another one is replayed: all share one pool of memory. This does what
    ``torch.cuda.graph`` does, but for collecting garbage and handing all cached memory back each time.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._keeper: torch.cuda.CUDAGraph | None = None

    def __call__(self, work: Callable[[], None]) -> Replay:
        """The recorded work."""
        if self._stream is None or self._keeper is None:
            self._stream = torch.cuda.Stream()
            # CUDA frees a pool with the last of its graphs and refuses a new one in it: this graph keeps it alive
            self._keeper = self._capture(
                lambda: torch.zeros(1, device="cuda"), torch.cuda.graph_pool_handle()
            )
        return self._capture(work, self._keeper.pool()).replay

    def _capture(self, work: Callable[[], object], pool: Any) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        assert stream is not None
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # libraries allocate a workspace at their first call on a stream: not inside the recording
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                square = torch.ones(16, 16, device="cuda", dtype=dtype)
                torch.mm(square, square)
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return graph


class RunLayers(Protocol):
    """:func:`dyvte.decoding.loop.run_layers`."""

    def __call__(self, stack: Stack, row: PackedRow, *, cache: RaggedCache) -> PackedRow:
        """All layers and the final norm over a row of single tokens."""
        ...


class Graphs:
    """What was recorded of the decoders it is used with: to be made once, and handed to every ``attach``.

    Args:
        record: how to record; CUDA graphs by default.
        most_bytes: of static buffers; see :data:`MOST_BYTES`.

    Attributes:
        recorded, replayed: how often.
    """

    def __init__(self, record: Record | None = None, most_bytes: int = MOST_BYTES) -> None:
        self._record: Record = CudaGraphs() if record is None else record
        self._of: WeakKeyDictionary[Decoder, _OfDecoder] = WeakKeyDictionary()
        self.most_bytes = most_bytes
        self.recorded = self.replayed = 0

    def close(self) -> None:
        """Give up all that was recorded, with its memory."""
        self._of.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of the static buffers of all buckets."""
        return sum(bucket.nbytes for own in self._of.values() for bucket in own.buckets.values() if bucket)

    def check(self, stack: Stack) -> None:
        """Raise ValueError when the decoder's work cannot be recorded.

        It has to be on one CUDA device, with layers that do not depend on how long a prompt is.
        """
        decoder = stack.decoder
        if any(isinstance(layer, FSDPModule) for layer in stack.layers):
            raise ValueError("graphs cannot be used for a model that processes share: layers come and go")
        kind = getattr(decoder.rotary_emb, "rope_type", "default")
        if kind in ("dynamic", "longrope"):
            raise ValueError(
                f"rotary embeddings of type {kind!r} look at lengths on the host: graphs cannot be used"
            )
        if not stack.plain:
            raise ValueError(
                "graphs are for decoders whose layers are all alike and see all tokens: not for sliding windows, or "
                "features added to tokens"
            )
        devices = {parameter.device for parameter in decoder.parameters()}
        if isinstance(self._record, CudaGraphs) and (
            len(devices) > 1 or {device.type for device in devices} != {"cuda"}
        ):
            names = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"CUDA graphs need the whole decoder on one CUDA device, this one is on {names}")

    def step(self, stack: Stack, row: PackedRow, cache: RaggedCache, run: RunLayers) -> PackedRow:
        """A decoding step of ``row``, one token per sample; ``run(stack, row, cache=cache)`` does it as usual."""
        own = self._own(stack.decoder)
        step = own.step
        if step is None or not step.continues(row, cache):
            cache.make_static()
            own.step = _Step(cache, own)
            return own.step.note(run(stack, row, cache=cache), cache)
        if step.replay is None:
            if step.seen < STEPS_BEFORE:
                return step.note(run(stack, row, cache=cache), cache)
            step.replay = self.record(step.prepare(stack, row, cache, run), row.hidden)
        else:
            step.hidden.copy_(row.hidden)
            step.positions.copy_(row.layout.positions)
            cache.count_step()  # recording has counted its own
        self.play(step.replay)
        return PackedRow(step.out.clone(), row.layout)

    def layers(self, plain: Layers, first: int, row: PackedRow) -> RecordedLayers | None:
        """The layers from ``first`` on as graphs.

        None where they have to run as usual: over rows that are long, hold more than plain text or continue a cache,
        and for the first row of a shape.
        """
        layout = row.layout
        samples, length = len(layout.samples), -(-max(layout.lengths) // BUCKET) * BUCKET
        if (
            any(layout.visual)
            or layout.sizes is not None
            or plain.continued
            or samples * length > MOST_TOKENS
        ):
            return None
        own = self._own(plain.stack.decoder)
        key = samples, length, plain.kernel, row.hidden.dtype, torch.is_inference_mode_enabled()
        if key not in own.buckets:
            own.buckets[key] = None  # seen once
            return None
        bucket = own.buckets[key]
        if bucket is None:
            bucket = own.buckets[key] = _Bucket.of(plain.stack.decoder, row, length)
        own.buckets.move_to_end(key)
        while self.nbytes > self.most_bytes and len(own.buckets) > 1:
            own.buckets.popitem(last=False)
        return RecordedLayers(self, bucket, plain, row)

    def _own(self, decoder: Decoder) -> _OfDecoder:
        """What was recorded of a decoder, as long as its weights are where they were: graphs hold addresses."""
        address = next(iter(decoder.parameters())).data_ptr()
        own = self._of.get(decoder)
        if own is None or own.address != address:
            own = self._of[decoder] = _OfDecoder(address)
        return own

    def record(self, work: Callable[[], None], on: Tensor) -> Replay:
        """Record work on the device of a tensor."""
        self.recorded += 1
        with torch.cuda.device_of(on):
            return self._record(work)

    def play(self, replay: Replay) -> None:
        """Replay recorded work."""
        self.replayed += 1
        replay()


class RecordedLayers:
    """Stands in for :class:`~dyvte.decoding.loop.Layers`: layers over text alone, replayed from graphs."""

    def __init__(self, graphs: Graphs, bucket: _Bucket, plain: Layers, row: PackedRow) -> None:
        self.layout = layout = row.layout
        self._graphs, self._bucket, self._plain = graphs, bucket, plain
        within = np.arange(len(layout.owners)) - np.array(layout.starts)[layout.owners]
        self._places = layout.to_device(layout.owners * bucket.length + within)
        bucket.set_positions(plain.stack.decoder, layout.positions, self._places)
        self._out: Tensor | None = None

    def __call__(
        self, index: int, hidden: Tensor, observe: Callable[[AttentionInputs], None] | None = None
    ) -> Tensor:
        """States (1, T, D) after layer ``index``, given those before it; a layer that is observed runs as usual."""
        if observe is not None:
            return self._plain(index, hidden, observe)
        bucket, cache, plain = self._bucket, self._plain.cache, self._plain
        if hidden is not self._out:
            bucket.hidden.zero_().index_copy_(1, self._places, hidden)
        if index not in bucket.replays:
            work = bucket.work(plain.stack.decoder, index, plain.kernel)
            bucket.replays[index] = self._graphs.record(work, bucket.hidden)
        self._graphs.play(bucket.replays[index])
        if cache is not None:
            keys, values = (part.index_select(2, self._places) for part in (bucket.keys, bucket.values))
            cache.layers[index].append(keys, values, self.layout.lengths)
        self._out = bucket.hidden.index_select(1, self._places)
        return self._out


@dataclass(eq=False)
class _OfDecoder:
    """What was recorded of one decoder.

    Attributes:
        address: of its first weight.
        step: its last decoding step.
        buckets: its layers by shape, the least recently used first; None for a shape seen once.
    """

    address: int
    step: _Step | None = None
    buckets: OrderedDict[tuple[object, ...], _Bucket | None] = field(default_factory=OrderedDict)


class _Step:
    """A decoding step of one epoch of one cache; given up with the cache.

    Attributes:
        seen: steps taken as usual.
        replay: the recorded step; None so far.
        hidden, positions, out: what it reads and writes.
    """

    hidden: Tensor
    positions: Tensor
    out: Tensor

    def __init__(self, cache: RaggedCache, owner: _OfDecoder) -> None:
        weak_owner, weak_step = ref(owner), ref(self)

        def forget(_: object) -> None:
            of = weak_owner()
            if of is not None and of.step is weak_step():
                of.step = None  # with it goes the graph, which holds memory

        self._cache = ref(cache, forget)
        self._epoch = -1
        self.seen = 0
        self.replay: Replay | None = None

    def note(self, row: PackedRow, cache: RaggedCache) -> PackedRow:
        """Remember the epoch that a step as usual has left, and pass its result on."""
        self._epoch = cache.epoch
        self.seen += 1
        return row

    def continues(self, row: PackedRow, cache: RaggedCache) -> bool:
        """Whether the epoch is still the same, and every slice has room for one more token."""
        same = cache is self._cache() and cache.epoch == self._epoch and cache.free_steps > 0
        return same and (self.replay is None or self.hidden.shape == row.hidden.shape)

    def prepare(self, stack: Stack, row: PackedRow, cache: RaggedCache, run: RunLayers) -> Callable[[], None]:
        """What is to be recorded."""
        self.hidden, self.positions = row.hidden.clone(), row.layout.positions.clone()
        layout = Layout.of_single_tokens(self.positions)

        def work() -> None:
            self.out = run(stack, PackedRow(self.hidden, layout), cache=cache).hidden

        return work


@dataclass(eq=False)
class _Bucket:
    """Static buffers of layers over text alone, for one number of samples of one length.

    Attributes:
        length: tokens of each sample, filled up.
        hidden: (1, samples * length, D), what each layer reads and overwrites.
        positions: (samples * length,) long.
        rope: cosines and sines, (1, samples * length, head_dim).
        keys, values: (1, kv_heads, samples * length, head_dim) of the layer that was replayed last.
        replays: what replays each layer, by index.
    """

    length: int
    hidden: Tensor
    positions: Tensor
    rope: tuple[Tensor, ...]
    layout: Layout
    keys: Tensor
    values: Tensor
    replays: dict[int, Replay] = field(default_factory=dict)

    @classmethod
    def of(cls, decoder: Decoder, row: PackedRow, length: int) -> _Bucket:
        """Empty buffers for rows of as many samples, of this length each."""
        tokens = len(row.layout.samples) * length
        hidden = row.hidden.new_zeros(1, tokens, row.hidden.shape[2])
        positions = row.layout.positions.new_zeros(tokens)
        rope = tuple(part.clone() for part in decoder.rotary_emb(hidden, position_ids=positions[None]))
        layout = Layout.of_text(positions, length)
        _ = layout.offsets  # on the device before anything is recorded
        nothing = hidden.new_zeros(0)
        return cls(length, hidden, positions, rope, layout, nothing, nothing)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        tensors = (self.hidden, self.positions, *self.rope, self.keys, self.values)
        return sum(tensor.nbytes for tensor in tensors)

    def set_positions(self, decoder: Decoder, positions: Tensor, places: Tensor) -> None:
        """Take over the positions (T,) of the tokens at ``places`` (T,)."""
        self.positions.zero_().index_copy_(0, places, positions)
        rope = decoder.rotary_emb(self.hidden, position_ids=self.positions[None])
        for buffer, fresh in zip(self.rope, rope, strict=True):
            buffer.copy_(fresh)

    def work(self, decoder: Decoder, index: int, kernel: str) -> Callable[[], None]:
        """What is to be recorded of a layer: states in place, keys and values into the bucket's buffers."""
        plan = make_plan(kernel, self.layout, continued=False)
        if not self.keys.numel():
            with torch.no_grad():  # a dry run, for the shapes
                shapes: list[Tensor] = []
                look = PackedContext(
                    self.layout, plan, None, observe=lambda seen: shapes.extend((seen.key, seen.value))
                )
                self._layer(decoder, index, look)
                self.keys, self.values = (torch.zeros_like(part) for part in shapes)

        def keep(seen: AttentionInputs) -> None:
            self.keys.copy_(seen.key)
            self.values.copy_(seen.value)

        context = PackedContext(self.layout, plan, None, observe=keep)

        def work() -> None:
            self.hidden.copy_(self._layer(decoder, index, context))

        return work

    def _layer(self, decoder: Decoder, index: int, context: PackedContext) -> Tensor:
        return decoder.layers[index](
            self.hidden,
            attention_mask=None,
            position_ids=self.positions[None],
            position_embeddings=self.rope,
            packed=context,
        )
