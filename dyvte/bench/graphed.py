"""transformers' own work as CUDA graphs: what it takes where launching costs nothing.

The forward as a whole is a variant. Layer by layer it gives the times of which the ideal is made: an exit that is
replayed from graphs is not compared with layers that wait for their launches.

Called by :mod:`dyvte.bench.decode`, :mod:`dyvte.bench.prefill` and :mod:`dyvte.bench.variants`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dyvte.bench.ideal import Probe
from dyvte.bench.shapes import Prompts
from dyvte.decoding.graphs import CudaGraphs
from dyvte.timing import Marks, seconds_of

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Records the device's work of a function, and gives what replays it."""


class OneGraph:
    """transformers' own prefill under one graph, recorded at its first call.

    transformers builds the causal mask while work is recorded, instead of leaving it to the kernel as it does else.

    Args:
        record: CUDA graphs by default.
    """

    def __init__(self, record: Record | None = None) -> None:
        self._record: Record = CudaGraphs() if record is None else record
        self._replay: Callable[[], None] | None = None
        self._out: Any = None

    def prefill(self, model, prompts: Prompts):
        """The output, logits (B, 1, vocabulary) of the next token, in memory that the next call overwrites."""
        if self._replay is None:
            # libraries choose and load kernels at a first call, and the cache takes its type from it
            cache = model(**prompts.inputs(), use_cache=True, logits_to_keep=1).past_key_values
            rewind = rewinder(cache.layers, prompts.inputs_embeds.shape[1])

            def work() -> None:
                rewind()
                self._out = model(**prompts.inputs(), past_key_values=cache, use_cache=True, logits_to_keep=1)

            with torch.cuda.device_of(prompts.inputs_embeds):
                self._replay = self._record(work)
        self._replay()
        return self._out


class GraphedLayers:
    """The layers of one forward, each a graph of its own, over the first one's states and its own cache.

    Args:
        forward: of transformers, without a policy; it fills or continues a dynamic cache.
        record: CUDA graphs by default.
    """

    def __init__(self, model, forward: Callable[[], object], record: Record | None = None) -> None:
        decoder, self._device = model.model, model.device
        calls: list[tuple[Tensor, dict[str, Any]]] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args[0], kwargs))

        hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in decoder.layers]
        try:
            forward()
        finally:
            for hook in hooks:
                hook.remove()
        hidden, given = calls[0]
        self._read = calls  # graphs hold the addresses of tensors, not tensors

        def rest() -> None:
            decoder.rotary_emb(hidden, position_ids=given["position_ids"])
            model.lm_head(decoder.norm(hidden[:, -1:]))

        make: Record = CudaGraphs() if record is None else record
        with torch.cuda.device_of(hidden):
            self._replays = [
                _recorded(make, index, layer, hidden, kwargs)
                for index, (layer, (_, kwargs)) in enumerate(zip(decoder.layers, calls, strict=True))
            ]
            self._rest = make(rest)

    def probe(self) -> Probe:
        """One run of all layers, norm and language head."""
        marks = Marks(self._device)

        def run() -> None:
            marks()
            for replay in self._replays:
                replay()
                marks()
            self._rest()

        total = seconds_of(run, self._device)
        return Probe(marks.seconds(len(self._replays) + 1), total)


def rewinder(layers: Sequence[Any], tokens: int) -> Callable[[], None]:
    """What lets layers of a dynamic cache hold what they held before the last ``tokens``."""
    held = [(layer, layer.keys[:, :, :-tokens], layer.values[:, :, :-tokens]) for layer in layers]

    def rewind() -> None:
        for layer, keys, values in held:
            layer.keys, layer.values = keys, values

    return rewind


def _recorded(
    record: Record, index: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
) -> Callable[[], None]:
    """One layer; its cache holds afterwards what it held before the layer ran, and so at every replay."""
    rewind = rewinder(kwargs["past_key_values"].layers[index : index + 1], hidden.shape[1])

    def work() -> None:
        rewind()
        layer(hidden, **kwargs)

    replay = record(work)
    rewind()
    return replay
