"""Put a policy into a model, and take it out again.

    handle = attach(model, LearnedExit(gates))     # or: with attach(model, policy) as handle:
    model.generate(...)
    handle.traces[-1].exit_layers
    handle.detach()

While attached, the model's decoder runs the packed layer loop. No class is changed: the decoder gets the instance
attributes ``forward`` and ``_exit_handle``, and some families get forward hooks, a FLOP counter and a recorded image
encoder. ``detach`` must remove all of them, so that the model computes what it did before, bit for bit.

:mod:`llava.chat_model`, :mod:`dyvte.engine.processor_model` and :mod:`dyvte.bench` attach policies for the commands.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache
from transformers.modeling_outputs import MoeModelOutputWithPast

from dyvte.cost.vision import VisionMeter
from dyvte.decoding.attention.plan import AUTO, check_kernel, choose_kernel
from dyvte.decoding.cache.ragged import RaggedCache
from dyvte.decoding.graphs import Graphs
from dyvte.decoding.loop import run_layers
from dyvte.decoding.packed import Layout, PackedRow, pack, unpack
from dyvte.decoding.policy import Policy
from dyvte.decoding.report import RunInfo
from dyvte.decoding.trace import ExitTrace
from dyvte.families.base import adapter_for
from dyvte.families.stack import execution_device, next_positions, text_positions
from dyvte.provenance import git_state, versions

TRACES_KEPT = 1024
"""Prefills whose traces a handle keeps: a trace is a few kilobytes, and a server must not fill up with them."""

CACHE = next(name for name in ("cache", "past_key_values") if name in MoeModelOutputWithPast.__annotations__)
"""What transformers calls the cache: ``cache`` since 5.24."""


def is_attached(model: nn.Module) -> bool:
    """Whether a policy is attached to the model."""
    return handle_of(model) is not None


def handle_of(model: nn.Module) -> Handle | None:
    """The handle of the policy attached to the model, or None."""
    return vars(adapter_for(model).decoder(model)).get("_exit_handle")


def attach(
    model: nn.Module,
    policy: Policy,
    graphs: Graphs | None = None,
    kernel: str | None = None,
) -> Handle:
    """Run the model's prefills under ``policy`` until the handle's ``detach``, or the end of its ``with`` block.

    Args:
        model: of a family in :mod:`dyvte.families`, as LLaVA's own class here or as transformers has it.
        policy: ``NoExit()``, ``FixedExit(layer)``, ``LearnedExit(gates)``, ...
        graphs: what records layers and decoding steps as CUDA graphs, and replays them; models may share one. By
            default every kernel is launched by itself.
        kernel: of attention, see :data:`~dyvte.decoding.attention.plan.KERNELS`; "auto" takes the fastest that fits
            (:func:`~dyvte.decoding.attention.plan.choose_kernel`). By default the model's own.

    Raises:
        ValueError: when the model family has no adapter, the policy does not fit the model's depth or width, a
            policy is attached already, the model's attention has no packed form, or ``graphs`` were given and the
            decoder cannot be recorded.
    """
    adapter = adapter_for(model)
    stack = adapter.stack(adapter.decoder(model))
    if is_attached(model):
        raise ValueError("a policy is attached to this model already: call detach() on its handle first")
    if graphs is not None:
        graphs.check(stack)
    return Handle(model, policy, graphs, kernel)


@dataclass
class DecoderOutput(MoeModelOutputWithPast):
    """What families read from their decoder; of mixtures of experts, the routers' logits are not kept."""

    shared_kv_states: Any = None


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


@dataclass
class _Prompt:
    """What a family's outer module knows of a prompt and its decoder is not told.

    Attributes:
        visual_mask, blocks: (B, S), see :func:`~dyvte.decoding.packed.pack`.
        attention_mask: (B, S); the decoder may get a 4-D mask, or several, in its place.
    """

    visual_mask: Tensor | None
    blocks: Tensor | None
    attention_mask: Tensor | None


class Handle:
    """An attached policy; a context manager that detaches at its end.

    Several threads may run the model at once; each collects its own traces with :meth:`collect`.

    Attributes:
        traces: one :class:`ExitTrace` per prefill, the newest :data:`TRACES_KEPT`; clear it as you like.
        run: what goes into reports about precision, kernel and device; complete it with digests where they are known.
    """

    def __init__(
        self, model: nn.Module, policy: Policy, graphs: Graphs | None = None, kernel: str | None = None
    ) -> None:
        adapter = adapter_for(model)
        self._model = model
        self._decoder = adapter.decoder(model)
        self._stack = adapter.stack(self._decoder)
        self._axes = adapter.position_axes
        self.policy = policy
        self.run = run_info(model)
        self.graphs = graphs
        self.kernel = kernel
        self.traces: deque[ExitTrace] = deque(maxlen=TRACES_KEPT)
        # of each thread: `traces` and `calls` being collected, and the `prompt` on its way to the decoder
        self._local = threading.local()
        tower, projector = adapter.vision(model)
        self._meter = None
        if tower is not None and adapter.counts_vision:
            self._meter = VisionMeter([part for part in (tower, projector) if part is not None])
        self._hooks: list[RemovableHandle] = []
        if adapter.visual_mask is not None:
            entry, visual_mask, blocks = adapter.entry(model), adapter.visual_mask, adapter.blocks
            names = list(inspect.signature(entry.forward).parameters)

            def note_prompt(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
                if self._meter is not None:
                    self._meter.take()  # of images that were encoded on their own
                if _columns(kwargs) > 1:
                    mask = kwargs.get("attention_mask")
                    self._local.prompt = _Prompt(
                        visual_mask(model, kwargs),
                        None if blocks is None else blocks(model, kwargs),
                        mask if isinstance(mask, Tensor) and mask.ndim == 2 else None,
                    )

            def forget_prompt(module: nn.Module, args: object, output: object) -> None:
                self._local.prompt = None

            # not through the arguments: some families hand them to the tower as well
            self._hooks = [
                entry.register_forward_pre_hook(note_prompt, with_kwargs=True),
                entry.register_forward_hook(forget_prompt, always_call=True),
            ]
        self._encoder = adapter.encoder(model)
        if self._encoder is not None:
            plain = getattr(model, self._encoder)
            parts = tuple(part for part in (tower, projector) if part is not None)

            def encode(pixels: Tensor) -> Tensor:
                graphs = self._usable_graphs()
                return plain(pixels) if graphs is None else graphs.call(parts, plain, pixels)

            vars(model)[self._encoder] = encode
        # plain attributes, so that neither enters the module tree or the state dict
        attributes = vars(self._decoder)
        self._own_forward = attributes.get("forward")  # where a wrapper has replaced the class's
        attributes["_exit_handle"], attributes["forward"] = self, self._forward

    @property
    def policy(self) -> Policy:
        """The policy; may be replaced between prefills.

        Raises:
            ValueError: on replacing it by one that does not fit the decoder.
        """
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        policy.check(len(self._decoder.layers), self._decoder.config.hidden_size)
        policy.check_model(self._model.config)  # type: ignore[arg-type] - of PreTrainedModel
        policy.place([_device_of(layer) for layer in self._decoder.layers])
        self._policy = policy

    @property
    def graphs(self) -> Graphs | None:
        """What replays recorded work; may be replaced between prefills."""
        return self._graphs

    @graphs.setter
    def graphs(self, graphs: Graphs | None) -> None:
        self._graphs = graphs
        self.run = replace(self.run, graphs=graphs is not None)

    @property
    def kernel(self) -> str:
        """The attention kernel; None is the model's own, "auto" the fastest that fits.

        Raises:
            ValueError: on setting one that has no packed form.
        """
        return self._kernel

    @kernel.setter
    def kernel(self, kernel: str | None) -> None:
        own = self._stack.config._attn_implementation_internal
        if kernel == AUTO:
            weight = next(part for part in self._decoder.parameters() if part.is_floating_point())
            attentions = [layer.self_attn for layer in self._decoder.layers]
            sizes = {getattr(part, "qk_head_dim", None) or part.head_dim for part in attentions}
            kernel = choose_kernel(own, weight.device, weight.dtype, sizes)
        kernel = kernel or str(own or "sdpa")
        check_kernel(kernel)
        self._kernel = kernel
        self.run = replace(self.run, attention=kernel)

    @contextmanager
    def collect(self) -> Generator[list[ExitTrace]]:
        """A list that takes the traces of this thread's prefills within the block, instead of :attr:`traces`."""
        outer, traces = getattr(self._local, "traces", None), []
        self._local.traces = traces
        try:
            yield traces
        finally:
            self._local.traces = outer

    @contextmanager
    def capture(self) -> Generator[list[DecoderCall]]:
        """A list that takes what this thread's calls of the decoder bring within the block; no layer runs there.

        A family's own code then places its image features, positions and blocks, and nothing else is computed. Do
        not nest it.
        """
        calls: list[DecoderCall] = []
        self._local.calls = calls
        try:
            yield calls
        finally:
            self._local.calls = None

    def detach(self) -> None:
        """Give the model back the forward that it had. A second call does nothing."""
        attributes = vars(self._decoder)
        if attributes.get("_exit_handle") is not self:
            return
        del attributes["_exit_handle"], attributes["forward"]
        if self._own_forward is not None:
            attributes["forward"] = self._own_forward
        if self._encoder is not None:
            del vars(self._model)[self._encoder]
        for hook in self._hooks:
            hook.remove()
        if self._meter is not None:
            self._meter.remove()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def _forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        visual_mask: Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> DecoderOutput:
        """Stands in for the decoder's forward: (B, S) ids or (B, S, D) embeddings -> states (B, S, D)."""
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.get(name):
                raise ValueError(
                    f"{name} is not available while a policy is attached: call handle.detach() first"
                )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        prompt: _Prompt | None = getattr(self._local, "prompt", None)
        blocks = None
        if prompt is not None:
            visual_mask, blocks = prompt.visual_mask, prompt.blocks
            attention_mask = prompt.attention_mask if prompt.attention_mask is not None else attention_mask
        if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
            attention_mask = None
        decoder, stack = self._decoder, self._stack
        embeds: Tensor = decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        embeds = stack.embed(embeds)
        extras = stack.extras(kwargs, embeds)
        if position_ids is not None:
            position_ids = text_positions(position_ids, self._axes)
        if (calls := getattr(self._local, "calls", None)) is not None:
            calls.append(DecoderCall(embeds, attention_mask, position_ids, visual_mask, blocks, extras))
            return DecoderOutput(last_hidden_state=embeds)
        use_cache = decoder.config.use_cache if use_cache is None else use_cache
        given = past_key_values if cache is None else cache
        held = _ragged(given, len(decoder.layers)) if use_cache or given is not None else None

        batch, columns, _ = embeds.shape
        if held is not None and held.columns:
            row = _continue(held, embeds, attention_mask, position_ids, visual_mask, extras)
            row = self._prefill(row, held) if columns > 1 else self._step(row, held)
        else:
            row = pack(embeds, attention_mask, position_ids, visual_mask, blocks=blocks, extras=extras)
            if held is not None:
                held.advance(columns, _next(row.layout), row.layout.lengths)
            row = self._prefill(row, held)
        out = DecoderOutput(last_hidden_state=unpack(row, batch, columns))
        if held is not None:
            out[CACHE] = held
        return out

    def _prefill(self, row: PackedRow, cache: RaggedCache | None) -> PackedRow:
        trace = ExitTrace(len(self._decoder.layers), row.layout, self._model, self.run)
        if self._meter is not None:
            trace.vision_flops = self._meter.take()
        row = run_layers(
            self._stack,
            row,
            policy=self.policy,
            trace=trace,
            cache=cache,
            graphs=self._usable_graphs(),
            kernel=self.kernel,
        )
        collected = getattr(self._local, "traces", None)
        (self.traces if collected is None else collected).append(trace)
        return row

    def _step(self, row: PackedRow, cache: RaggedCache) -> PackedRow:
        graphs = self._usable_graphs()
        if graphs is None:
            return run_layers(self._stack, row, cache=cache, kernel=self.kernel)
        return graphs.step(self._stack, row, cache, partial(run_layers, kernel=self.kernel))

    def _usable_graphs(self) -> Graphs | None:
        """Recorded work has no gradients."""
        return None if torch.is_grad_enabled() else self.graphs


def run_info(model: nn.Module) -> RunInfo:
    """Precision, kernel, device and code, as reports of this model's prefills state them."""
    device: torch.device = model.device  # type: ignore[assignment]
    commit, dirty = git_state()
    return RunInfo(
        dtype=str(model.dtype).removeprefix("torch."),
        attention=adapter_for(model).decoder(model).config._attn_implementation or "sdpa",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        commit=commit,
        dirty=dirty,
        versions=versions(),
    )


def _device_of(layer: nn.Module) -> torch.device:
    """Where a layer computes, also where accelerate keeps its weights elsewhere until then."""
    return execution_device(layer) or next(layer.parameters()).device


def _columns(kwargs: dict[str, Any]) -> int:
    given = kwargs.get("input_ids")
    return (kwargs["inputs_embeds"] if given is None else given).shape[1]


def _ragged(past_key_values: Cache | None, num_layers: int) -> RaggedCache:
    """The ragged cache to go on with; a fresh one for the empty cache that ``generate`` makes."""
    if isinstance(past_key_values, RaggedCache):
        return past_key_values
    if past_key_values is not None and past_key_values.get_seq_length() > 0:
        raise ValueError(
            f"this {type(past_key_values).__name__} was filled before the policy was attached: start from an "
            "empty cache"
        )
    return RaggedCache(num_layers)


def _next(layout: Layout) -> Tensor:
    """(G,) long, the position after each sequence."""
    return next_positions(layout.positions, layout.owner_ids, len(layout.samples))


def _continue(
    cache: RaggedCache,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    visual_mask: Tensor | None,
    extras: Any,
) -> PackedRow:
    """Pack tokens that follow what the cache holds.

    Positions follow each sample's full length; only where they have several axes are the given ones taken, since new
    images move them.
    """
    batch, columns, _ = inputs_embeds.shape
    if batch != len(cache.next_positions):
        raise ValueError(f"the cache holds {len(cache.next_positions)} samples, the batch has {batch}")
    offsets = cache.next_positions
    if columns > 1:
        new = None if attention_mask is None else attention_mask[:, -columns:]
        if visual_mask is not None and visual_mask.shape[1] != columns:
            visual_mask = None  # `generate` repeats the prompt's mask; what follows the prompt is text
        given = position_ids if position_ids is not None and position_ids.ndim == 3 else None
        row = pack(inputs_embeds, new, given, visual_mask, extras=extras)
        layout = row.layout
        places = layout.places + np.array(cache.seen)[layout.owners]
        positions = layout.positions if given is not None else layout.positions + offsets[layout.owner_ids]
        layout = replace(layout, positions=positions, places=places)
        cache.advance(columns, _next(layout), layout.lengths)
        return PackedRow(row.hidden, layout)
    layout = replace(Layout.of_single_tokens(offsets, cache.seen), extras=extras)
    cache.advance(1, offsets + 1, [1] * batch)
    # a reshape, not a transpose: with strides of a transpose matrix products would copy their weights
    return PackedRow(inputs_embeds.reshape(1, batch, -1), layout)
