"""What was recorded of which decoder, and for how long it is kept.

Users make :class:`Graphs` and hand it to ``attach``. Called by :mod:`dyvte.decoding.loop`.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Hashable
from contextlib import ExitStack, contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from dyvte.cost.layers import EXPERTS
from dyvte.decoding.cache.ragged import RaggedCache
from dyvte.decoding.graphs.calls import Calls
from dyvte.decoding.graphs.compiled import compiled
from dyvte.decoding.graphs.record import CudaGraphs, NotRecorded, Record, Replay, address_of
from dyvte.decoding.graphs.rows import STORE_STEP, Bucket, RecordedLayers, Store, shape_of
from dyvte.decoding.graphs.step import STEPS_BEFORE, RunLayers, Step
from dyvte.decoding.loop import Layers
from dyvte.decoding.packed import PackedRow
from dyvte.decoding.policy import Policy
from dyvte.decoding.trace import ExitTrace
from dyvte.families.protocols import Decoder
from dyvte.families.stack import Stack

MOST_TOKENS = 3072
"""Longer rows run as usual. On an H100, gates that never fire lengthen the prefill of LLaVA-1.5-7B's shape, against
the same packed layers without gates, by 71% at 636 tokens, 8% at 2,940 and 2% at 5,088
(docs/benchmarks/h100-before): that is what launching and waiting cost, and all that a recording can save."""
MOST_BYTES = 2**30
"""Memory for recorded layers of one decoder; beyond it the least recently used bucket is given up. A
choice: keys and values of 1,700 tokens of LLaVA-1.5-7B (0.5 MiB each) and some ten buckets."""
PAYS_AFTER = 8
"""Rows of a shape that run as usual before :func:`default_graphs` record it. On an H100 recording took 4.7 ms a layer
(0.3 s for 64), and replaying saved 0.6 ms of it (LLaVA-1.5-7B's prefill took 43 ms launched, 23.9 ms replayed;
docs/benchmarks/h100-before): so late, recording a shape never takes much longer than was lost without."""


class Graphs:
    """What was recorded of the decoders it is used with: to be made once, and handed to every ``attach``.

    Args:
        record: how to record; CUDA graphs by default.
        most_bytes: for recorded layers of each decoder; see :data:`MOST_BYTES`.
        compile: whether layers are compiled before they are recorded, which takes seconds for each bucket.
        after: rows of a shape that run as usual before it is recorded.
        fallback: whether work that turns out not to be recordable runs as usual from then on, with a warning; else
            that is an error.

    Attributes:
        recorded, replayed: how often.
        failed: whether a recording has failed, and all work runs as usual.
    """

    def __init__(
        self,
        record: Record | None = None,
        most_bytes: int = MOST_BYTES,
        *,
        compile: bool = False,
        after: int = 1,
        fallback: bool = False,
    ) -> None:
        self._record: Record = CudaGraphs() if record is None else record
        self._of: WeakKeyDictionary[Decoder, _OfDecoder] = WeakKeyDictionary()
        self._calls: WeakKeyDictionary[nn.Module, Calls] = WeakKeyDictionary()
        self.most_bytes, self.compile = most_bytes, compile
        self.after, self.fallback = after, fallback
        self.recorded = self.replayed = 0
        self.failed = False

    def close(self) -> None:
        """Give up all that was recorded, with its memory."""
        self._of.clear()
        self._calls.clear()
        if isinstance(self._record, CudaGraphs):
            self._record.close()

    @property
    def nbytes(self) -> int:
        """Bytes of all recorded layers."""
        return sum(own.nbytes for own in self._of.values())

    def check(self, stack: Stack) -> None:
        """Raise ValueError when the decoder's work cannot be recorded."""
        reason = self.refuses(stack)
        if reason is not None:
            raise ValueError(reason)

    def refuses(self, stack: Stack) -> str | None:
        """Why a decoder's work cannot be recorded; None where it can.

        It has to be on one CUDA device, with layers that do not depend on how long a prompt is.
        """
        decoder = stack.decoder
        if any(isinstance(layer, FSDPModule) for layer in stack.layers):
            return "graphs cannot be used for a model that processes share: layers come and go"
        kind = getattr(decoder.rotary_emb, "rope_type", "default")
        if kind in ("dynamic", "longrope"):
            return f"rotary embeddings of type {kind!r} look at lengths on the host: graphs cannot be used"
        if not stack.plain:
            return (
                "graphs are for decoders whose layers are all alike and see all tokens: not for sliding windows, or "
                "features added to tokens"
            )
        if any(getattr(stack.config, name, None) for name in EXPERTS):
            return "graphs are not for mixtures of experts, whose routing waits for the device"
        if not all(parameter.is_floating_point() for parameter in decoder.parameters()):
            return "graphs are not for quantized weights, whose kernels may wait for the device"
        devices = {parameter.device for parameter in decoder.parameters()}
        if isinstance(self._record, CudaGraphs) and (
            len(devices) > 1 or {device.type for device in devices} != {"cuda"}
        ):
            names = ", ".join(sorted(map(str, devices)))
            return f"CUDA graphs need the whole decoder on one CUDA device, this one is on {names}"
        return None

    def step(self, stack: Stack, row: PackedRow, cache: RaggedCache, run: RunLayers) -> PackedRow:
        """A decoding step of ``row``, one token per sample; ``run(stack, row, cache=cache)`` does it as usual."""
        if self.failed:
            return run(stack, row, cache=cache)
        own = self._own(stack.decoder)
        step = own.step
        if step is None or not step.continues(row, cache):
            cache.make_static()
            own.step = step = Step(cache, own.forget)
            return step.note(run(stack, row, cache=cache), cache)
        if step.replay is None:
            if step.seen < STEPS_BEFORE:
                return step.note(run(stack, row, cache=cache), cache)
            held = cache.kv_lengths
            try:
                step.replay = self._recorded(step.prepare(stack, row, cache, run), row.hidden)
            except NotRecorded:
                cache.forget_step(held)
                return run(stack, row, cache=cache)
        else:
            step.hidden.copy_(row.hidden)
            step.positions.copy_(row.layout.positions)
            cache.count_step()  # recording has counted its own
        self._play(step.replay)
        return PackedRow(step.out.clone(), row.layout)

    def layers(
        self, plain: Layers, first: int, row: PackedRow, policy: Policy, trace: ExitTrace, until: ExitStack
    ) -> RecordedLayers | None:
        """The layers from ``first`` on as graphs, with the policy's probes inside.

        None where they have to run as usual: over rows that are long, were merged or forked, have blocks or continue
        a cache, for the first rows of a shape, and while another thread replays layers of this decoder.

        Args:
            until: is closed when the row gets another layout, or all layers are done.
        """
        layout = row.layout
        if (
            self.failed
            or row.hidden.shape[1] > MOST_TOKENS
            or plain.continued
            or layout.sizes is not None
            or layout.block_ids is not None
            or any(origin is not None for origin in layout.forked_at)
        ):
            return None
        own = self._own(plain.stack.decoder, whole=first == 0)
        if row.hidden.shape[1] >= own.too_many or not own.lock.acquire(blocking=False):
            return None
        until.callback(own.lock.release)
        probes = policy.probes(layout)
        key = (*shape_of(plain, row, probes), *(address_of(probe.weights) for probe in probes))
        bucket = own.buckets.get(key)
        if bucket is None:
            if own.met[key] < self.after:
                own.met[key] += 1
                return None
            try:
                with self._recording(row.hidden):
                    bucket = Bucket(plain, row, probes, own.layers)
                    fits = own.make_room(bucket, plain.stack, first, self.most_bytes)
            except NotRecorded:
                return None
            if not fits:
                own.too_many = row.hidden.shape[1]
                return None
            own.buckets[key] = bucket
        own.buckets.move_to_end(key)
        while own.nbytes > self.most_bytes and len(own.buckets) > 1:
            given_up, _ = own.buckets.popitem(last=False)
            del own.met[given_up]
        assert own.store is not None
        recorded = RecordedLayers(
            bucket,
            own.store,
            plain,
            row,
            probes,
            trace,
            lambda work: self._recorded(work, row.hidden),
            self._play,
        )
        until.callback(recorded.close)
        return recorded

    def call(
        self, modules: tuple[nn.Module, ...], function: Callable[[Tensor], Tensor], value: Tensor
    ) -> Tensor:
        """``function(value)``, replayed where inputs of this shape came up before.

        Args:
            modules: whose weights the function uses; the first one stands for it.
        """
        if self.failed:
            return function(value)
        calls = self._calls.get(modules[0])
        if calls is None or not calls.fits(modules):
            calls = self._calls[modules[0]] = Calls(modules)
        return calls(function, value, lambda work: self._recorded(work, value), self._play)

    def _own(self, decoder: Decoder, whole: bool = False) -> _OfDecoder:
        """What was recorded of a decoder, as long as its weights are where they were: graphs hold addresses.

        Args:
            whole: look for modules and parameters that were replaced too, not only for moved ones: once a prefill,
                since it takes a few tenths of a millisecond.
        """
        own = self._of.get(decoder)
        if own is None or own.moved() or (whole and own.addresses != address_of(decoder)):
            own = self._of[decoder] = _OfDecoder(decoder, self.compile)
        return own

    def _recorded(self, work: Callable[[], None], on: Tensor) -> Replay:
        """Record work on the device of a tensor; raises as :meth:`_recording`."""
        self.recorded += 1
        with self._recording(on):
            return self._record(work)

    @contextmanager
    def _recording(self, on: Tensor) -> Generator[None]:
        """Within it work is recorded, or prepared for it, on the device of a tensor.

        Raises:
            NotRecorded: that failed, and with ``fallback`` nothing is recorded any more.
            RuntimeError: that failed.
        """
        try:
            with torch.cuda.device_of(on):
                yield
        except RuntimeError as error:
            reason = f"this model's work cannot be recorded as CUDA graphs ({error})"
            if not self.fallback:
                raise RuntimeError(
                    f"{reason}: attach with graphs=None, or run with --no-cuda-graphs"
                ) from error
            self.failed = True
            self.close()
            warnings.warn(f"{reason}: it runs without", stacklevel=2)
            raise NotRecorded(reason) from error

    def _play(self, replay: Replay) -> None:
        self.replayed += 1
        replay()


def default_graphs(stack: Stack) -> Graphs | None:
    """What records a model where nobody says what is to; None for decoders that :meth:`Graphs.refuses` names.

    On an H100 at batch 1 a prototype with a graph for each layer of LLaVA-1.5-7B's shape took 14 to 24 ms where
    launching one by one took 38 to 43 ms, and recorded steps took 35% to 41% less than transformers'
    (docs/benchmarks/h100-before).
    """
    graphs = Graphs(after=PAYS_AFTER, fallback=True)
    return graphs if graphs.refuses(stack) is None else None


class _OfDecoder:
    """What was recorded of one decoder.

    Attributes:
        layers: its layers, or these compiled.
        addresses: of its weights.
        lock: held while layers are replayed: their buffers serve one prefill at a time.
        step: its last decoding step.
        store: keys and values of the row that was replayed last; None so far.
        too_many: tokens whose keys and values would pass the budget.
        buckets: its layers by shape, the least recently used first.
        met: rows of a shape that ran as usual.
    """

    def __init__(self, decoder: Decoder, compile: bool) -> None:
        self.layers = compiled(decoder.layers) if compile else decoder.layers
        self.addresses = address_of(decoder)
        self._parameters = list(decoder.parameters())
        self._at = [parameter.data_ptr() for parameter in self._parameters]
        self.lock = Lock()
        self.step: Step | None = None
        self.store: Store | None = None
        self.too_many: float = math.inf
        self.buckets: OrderedDict[Hashable, Bucket] = OrderedDict()
        self.met: Counter[Hashable] = Counter()

    def moved(self) -> bool:
        """Whether a parameter has other memory than when this was made."""
        return [parameter.data_ptr() for parameter in self._parameters] != self._at

    def forget(self, step: Step) -> None:
        """Give up a step whose cache is gone."""
        if self.step is step:
            self.step = None

    @property
    def nbytes(self) -> int:
        """Bytes of store and buckets."""
        held = 0 if self.store is None else self.store.nbytes
        return held + sum(bucket.nbytes for bucket in self.buckets.values())

    def make_room(self, bucket: Bucket, stack: Stack, layer: int, most_bytes: int) -> bool:
        """Make the store hold rows of a new bucket; False where that takes more than ``most_bytes``."""
        held = self.store
        if held is None or bucket.tokens > held.capacity:
            key, value = bucket.shapes(stack, layer)
            capacity = -(-bucket.tokens // STORE_STEP) * STORE_STEP
            size = len(bucket.layers) * capacity * (key[0, :, 0].nbytes + value[0, :, 0].nbytes)
            if size + bucket.nbytes > most_bytes:
                return False
            self.buckets.clear()  # recorded with the old store
            self.store = held = None  # its memory first
            self.store = Store(len(bucket.layers), key, value, capacity)
            return True
        return held.nbytes + bucket.nbytes <= most_bytes
