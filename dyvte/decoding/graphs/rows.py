"""The layers of a prefill, one graph for each, over rows of one shape.

Rows are filled up to a multiple of :data:`BUCKET` tokens. What fills them is a sequence of its own, so no token sees
it, and nothing of it is kept. A graph holds a decoder layer with all that a policy's probes compute from its states,
up to the copy of the answers to the host's memory:

    hidden -> layer -> hidden           replay, wait for the device, read the answers,
               |  '--> probes -> answers    let the policy edit the row, replay the next layer ...
               '--> keys, values of all layers --> cache, once all layers over this row are done

Called by :mod:`dyvte.decoding.graphs.graphs` and :mod:`dyvte.decoding.loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dyvte.decoding.attention.interface import AttentionInputs, PackedContext
from dyvte.decoding.attention.plan import make_filled_plan
from dyvte.decoding.graphs.record import NotRecorded, Replay, ordinary_tensors
from dyvte.decoding.loop import Layers
from dyvte.decoding.packed import Layout, PackedRow
from dyvte.decoding.policy import Probe
from dyvte.decoding.trace import ExitTrace
from dyvte.families.stack import Stack

BUCKET = 32
"""Rows are filled up to a multiple of this many tokens. A choice: it wastes 16 tokens on average where 60 to 700 are
usual, and a handful of buckets serves a benchmark at batch 1."""
STORE_STEP = 256
"""The store of keys and values has room for a multiple of this many tokens. A choice: it grows, and all is recorded
anew, a few times at most."""

GRAPH_BYTES = 256 * 2**10
"""What a recorded layer takes on the device beside its buffers. An estimate, to be replaced by a measurement."""

Recorder = Callable[[Callable[[], None]], Replay]


class Store:
    """Keys and values of all layers over the row that was replayed last; shared by all buckets of a decoder.

    Attributes:
        keys, values: (layers, kv_heads, capacity, head_dim).
    """

    def __init__(self, layers: int, key: Tensor, value: Tensor, capacity: int) -> None:
        with ordinary_tensors():
            self.keys, self.values = (
                part.new_zeros(layers, part.shape[1], capacity, part.shape[3]) for part in (key, value)
            )

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.keys.nbytes + self.values.nbytes

    def put(self, layer: int, seen: AttentionInputs) -> None:
        """Copy what a layer's attention works on; this is recorded."""
        for part, store in ((seen.key, self.keys), (seen.value, self.values)):
            store[layer, :, : part.shape[2]].copy_(part[0])

    def take(self, first: int, last: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Copies of the first tokens of the layers ``first`` to ``last``, (layers, kv_heads, tokens, head_dim)."""
        keys, values = (part[first : last + 1, :, :tokens] for part in (self.keys, self.values))
        contiguous = torch.contiguous_format
        return keys.clone(memory_format=contiguous), values.clone(memory_format=contiguous)


@dataclass(frozen=True, eq=False)
class Asked:
    """A probe whose inputs and answers lie in static buffers.

    Attributes:
        answers: (layers, n) float32, in pinned memory of the host.
    """

    probe: Probe
    inputs: tuple[Tensor, ...]
    answers: Tensor


def shape_of(plain: Layers, row: PackedRow, probes: Sequence[Probe]) -> tuple[Hashable, ...]:
    """What rows that share a bucket have in common."""
    layout = row.layout
    return (
        len(layout.samples),
        _filled(row.hidden.shape[1]),
        _filled(max(layout.lengths)),
        plain.kernel,
        row.hidden.dtype,
        layout.positions.shape[:-1],
        *((type(probe.owner), probe.weights, *(part.shape for part in probe.inputs)) for probe in probes),
    )


class Bucket:
    """Static buffers of rows of one shape, and the graphs of the layers that were recorded on them.

    Attributes:
        tokens: of the rows, filled up.
        hidden: (1, tokens, D), what each layer reads and overwrites.
        layers: of the decoder.
        asked: the probes.
        replays: what replays a layer, by its index and which probes run after it.
    """

    def __init__(
        self, plain: Layers, row: PackedRow, probes: Sequence[Probe], layers: Sequence[nn.Module]
    ) -> None:
        self.layers = layers
        _, tokens, width = row.hidden.shape
        self.tokens = _filled(tokens)
        device = row.hidden.device
        pinned = device.type == "cuda"
        with ordinary_tensors():
            self.hidden = row.hidden.new_zeros(1, self.tokens, width)
            self._positions = plain.positions.new_zeros(*plain.positions.shape[:-1], self.tokens)
            self._ropes = {
                kind: tuple(part.new_zeros(*part.shape[:-2], self.tokens, part.shape[-1]) for part in rope)
                for kind, rope in plain.ropes.items()
            }
            self.asked = [
                Asked(
                    probe,
                    tuple(part.clone() for part in probe.inputs),
                    torch.zeros(len(layers), probe.answers, pin_memory=pinned),
                )
                for probe in probes
            ]
            sequences, longest = len(row.layout.samples), _filled(max(row.layout.lengths))
            self._plans = {
                rule: make_filled_plan(plain.kernel, sequences, self.tokens, longest, rule, device)
                for rule in dict.fromkeys(plain.stack.rules)
            }
        self._layout = Layout.of_text(self._positions.reshape(-1, self.tokens)[0], self.tokens)
        self._done = torch.cuda.Event() if pinned else None
        self.replays: dict[tuple[int, tuple[int, ...]], Replay] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers on the device, and about those of all layers' graphs."""
        buffers = [self.hidden, self._positions]
        buffers += [part for rope in self._ropes.values() for part in rope]
        buffers += [part for plan in self._plans.values() for part in plan.buffers]
        buffers += [part for asked in self.asked for part in asked.inputs]
        return sum(buffer.nbytes for buffer in buffers) + len(self.layers) * GRAPH_BYTES

    def load(self, plain: Layers, row: PackedRow, probes: Sequence[Probe]) -> Tensor:
        """Take over a row of this shape; gives the states (1, T, D) that each replay overwrites, without filler."""
        tokens = row.hidden.shape[1]
        self._positions[..., :tokens].copy_(plain.positions)
        for kind, rope in plain.ropes.items():
            for buffer, part in zip(self._ropes[kind], rope, strict=True):
                buffer[..., :tokens, :].copy_(part)
        for plan in self._plans.values():
            plan.load(row.layout)
        for asked, probe in zip(self.asked, probes, strict=True):
            for buffer, part in zip(asked.inputs, probe.inputs, strict=True):
                buffer.copy_(part)
        hidden = self.hidden[:, :tokens]
        hidden.copy_(row.hidden)
        return hidden

    def shapes(self, stack: Stack, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values (1, kv_heads, tokens, head_dim) of a layer, computed without recording anything."""
        found: list[Tensor] = []
        with ordinary_tensors():
            self._layer(stack, index, lambda seen: found.extend((seen.key, seen.value)))
        return found[0], found[1]

    def replay(
        self, stack: Stack, index: int, asking: tuple[int, ...], store: Store, record: Recorder
    ) -> Replay:
        """What replays a layer with some of the probes; keys and values go to the store.

        It is recorded where it was not.
        """
        if (index, asking) in self.replays:
            return self.replays[index, asking]

        def keep(seen: AttentionInputs) -> None:
            store.put(index, seen)

        def work() -> None:
            self.hidden.copy_(self._layer(stack, index, keep))
            for at in asking:
                asked = self.asked[at]
                answer = asked.probe.compute(index, self.hidden[0], asked.inputs)
                asked.answers[index].copy_(answer, non_blocking=True)

        with ordinary_tensors():
            self._layer(
                stack, index, keep
            )  # libraries choose, and compilers make, their kernels at the first call
            self.replays[index, asking] = record(work)
        return self.replays[index, asking]

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(self.hidden.device))
            self._done.synchronize()

    def _layer(self, stack: Stack, index: int, keep: Callable[[AttentionInputs], None]) -> Tensor:
        kind, rule = stack.kinds[index], stack.rules[index]
        context = PackedContext(self._layout, self._plans[rule], None, rule, observe=keep)
        return stack.run(index, self.layers[index], self.hidden, self._ropes[kind], self._positions, context)


class RecordedLayers:
    """Stands in for :class:`~dyvte.decoding.loop.Layers`: the same layers over one row, replayed from graphs."""

    def __init__(
        self,
        bucket: Bucket,
        store: Store,
        plain: Layers,
        row: PackedRow,
        probes: Sequence[Probe],
        trace: ExitTrace,
        record: Recorder,
        play: Callable[[Replay], None],
    ) -> None:
        self.layout = row.layout
        self._bucket, self._store, self._plain, self._trace = bucket, store, plain, trace
        self._record, self._play = record, play
        self._probes = probes
        self._out = bucket.load(plain, row, probes)
        self._loaded: Tensor | None = row.hidden
        self._replayed: list[int] = []

    def __call__(
        self, index: int, hidden: Tensor, observe: Callable[[AttentionInputs], None] | None = None
    ) -> Tensor:
        """States (1, T, D) after layer ``index``, given those before it; a layer that is observed runs as usual."""
        if observe is not None:
            return self._plain(index, hidden, observe)
        bucket = self._bucket
        if hidden is not self._out and hidden is not self._loaded:
            self._out.copy_(hidden)
        self._loaded = None
        asking = tuple(at for at, probe in enumerate(self._probes) if probe.asks(index))
        try:
            replay = bucket.replay(self._plain.stack, index, asking, self._store, self._record)
        except NotRecorded:
            return self._plain(index, hidden)
        self._play(replay)
        self._replayed.append(index)
        if asking:
            bucket.wait()
            for at in asking:
                answer = bucket.asked[at].answers[index].clone()
                self._trace.note_answer(self._probes[at].owner, self.layout, answer)
        return self._out

    def close(self) -> None:
        """Hand keys and values of all replayed layers to the cache: one copy each."""
        cache = self._plain.cache
        if cache is None or not self._replayed:
            return
        first, tokens = self._replayed[0], self._out.shape[1]
        keys, values = self._store.take(first, self._replayed[-1], tokens)
        for index in self._replayed:
            at = slice(index - first, index - first + 1)
            cache.layers[index].append(keys[at], values[at], self.layout.lengths)


def _filled(tokens: int) -> int:
    return -(-tokens // BUCKET) * BUCKET
