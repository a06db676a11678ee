"""Put a policy into a model, and take it out again.

    handle = attach(model, LearnedExit(gates))     # or: with attach(model, policy) as handle:
    model.generate(...)
    handle.traces[-1].exit_layers
    handle.detach()

While attached, the model's decoder runs the packed layer loop. No class is changed: the decoder gets the instance
attributes ``forward`` and ``_exit_handle``, the model ``generate`` and ``init_continuous_batching``, and some
families get forward hooks, a FLOP counter and a recorded image encoder. ``detach`` must remove all of them, so that
the model computes what it did before, bit for bit. All functions among them are methods of the handle, not closures,
so that a model can be copied and pickled with its policy.

:mod:`llava.chat_model`, :mod:`llava.model.builder`, :mod:`dyvte.engine.processor_model` and :mod:`dyvte.bench` attach
policies for the commands.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache
from transformers.modeling_outputs import MoeModelOutputWithPast

from dyvte.cost.vision import VisionMeter
from dyvte.decoding.attention.plan import AUTO, check_kernel, choose_kernel
from dyvte.decoding.cache.ragged import RaggedCache
from dyvte.decoding.generation import Generation, refuse_continuous_batching
from dyvte.decoding.graphs import Graphs, default_graphs
from dyvte.decoding.inputs import DecoderCall, step_row, tokens_row
from dyvte.decoding.loop import run_layers
from dyvte.decoding.packed import PackedRow, unpack
from dyvte.decoding.policy import Policy
from dyvte.decoding.report import RunInfo
from dyvte.decoding.trace import ExitTrace
from dyvte.families.base import adapter_for, unwrapped
from dyvte.families.stack import execution_device, text_positions
from dyvte.provenance import git_state, versions

TRACES_KEPT = 1024
"""Prefills whose traces a handle keeps: a trace is a few kilobytes, and a server must not fill up with them."""

CACHE = next(name for name in ("cache", "past_key_values") if name in MoeModelOutputWithPast.__annotations__)
"""What transformers calls the cache: ``cache`` since 5.24."""

OUTPUTS = ("output_attentions", "output_hidden_states")
"""What stock decoders can return besides their last states, and packed rows cannot."""


def is_attached(model: nn.Module) -> bool:
    """Whether a policy is attached to the model."""
    return handle_of(model) is not None


def handle_of(model: nn.Module) -> Handle | None:
    """The handle of the policy attached to the model, or None."""
    model = unwrapped(model)
    return vars(adapter_for(model).decoder(model)).get("_exit_handle")


def attach(
    model: nn.Module,
    policy: Policy,
    graphs: Graphs | Literal["auto"] | None = "auto",
    kernel: str | None = AUTO,
) -> Handle:
    """Run the model's prefills under ``policy`` until the handle's ``detach``, or the end of its ``with`` block.

    Args:
        model: of a family in :mod:`dyvte.families`, as LLaVA's own class here or as transformers has it; peft may
            have wrapped it.
        policy: ``NoExit()``, ``FixedExit(layer)``, ``LearnedExit(gates)``, ...
        graphs: what records layers and decoding steps as CUDA graphs, and replays them; models may share one. "auto"
            makes one on a CUDA device where the decoder can be recorded, and goes on without, after a warning, if a
            recording fails (:func:`~dyvte.decoding.graphs.default_graphs`). With None every kernel is launched by
            itself.
        kernel: of attention, see :data:`~dyvte.decoding.attention.plan.KERNELS`. "auto" takes, on a CUDA device, the
            fastest that fits in place of SDPA (:func:`~dyvte.decoding.attention.plan.choose_kernel`); None is the
            model's own.

    Raises:
        ValueError: when the model family has no adapter, the policy does not fit the model's depth or width, a
            policy is attached already, the model's attention has no packed form, or ``graphs`` were given and the
            decoder cannot be recorded.
    """
    model = unwrapped(model)
    if is_attached(model):
        raise ValueError("a policy is attached to this model already: call detach() on its handle first")
    return Handle(model, policy, graphs, kernel)


@dataclass
class DecoderOutput(MoeModelOutputWithPast):
    """What families read from their decoder; of mixtures of experts, the routers' logits are not kept."""

    shared_kv_states: Any = None


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


class _Local(threading.local):
    """What each thread is doing with the model.

    Attributes:
        prompt: on its way to the decoder.
        generation: under way.
        traces, calls: being collected.
    """

    prompt: _Prompt | None = None
    generation: Generation | None = None
    traces: list[ExitTrace] | None = None
    calls: list[DecoderCall] | None = None


class Handle:
    """An attached policy; a context manager that detaches at its end.

    Several threads may run the model at once; each collects its own traces with :meth:`collect`. A copy of the model
    (``copy.deepcopy``, pickle) has a handle of its own (:func:`handle_of`), without traces and graphs.

    Attributes:
        traces: one :class:`ExitTrace` per prefill, the newest :data:`TRACES_KEPT`; clear it as you like.
        run: what goes into reports about precision, kernel and device; complete it with digests where they are known.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        graphs: Graphs | Literal["auto"] | None,
        kernel: str | None,
    ) -> None:
        adapter = adapter_for(model)
        self._model = model
        self._decoder = adapter.decoder(model)
        self._stack = adapter.stack(self._decoder)
        self._ids_are_columns = adapter.visual_mask is not None
        self._local = _Local()
        self._where = self._now_where()
        self.policy = policy
        self.run = run_info(model)
        self.graphs = graphs
        self.kernel = kernel
        self.traces: deque[ExitTrace] = deque(maxlen=TRACES_KEPT)
        tower, projector = adapter.vision(model)
        self._vision = tuple(part for part in (tower, projector) if part is not None)
        self._meter = None
        if tower is not None and adapter.counts_vision:
            self._meter = VisionMeter(self._vision)
        self._hooks: list[RemovableHandle] = []
        if adapter.visual_mask is not None:
            entry = adapter.entry(model)
            self._entry_names = _parameters(entry, "forward")
            # not through the arguments: some families hand them to the tower as well
            self._hooks = [
                entry.register_forward_pre_hook(self._note_prompt, with_kwargs=True),
                entry.register_forward_hook(self._forget_prompt, always_call=True),
            ]
        # plain attributes, so that none enters the module tree or the state dict
        vars(self._decoder)["_exit_handle"] = self
        self._replaced: dict[str, tuple[Any, Any]] = {}  # what wrappers had set instead of the class's
        self._replace(self._decoder, "forward", self._forward)
        self._encoder = adapter.encoder(model)
        if self._encoder is not None:
            self._replace(model, self._encoder, self._encode)
        if hasattr(model, "generate"):
            self._generate_names = _parameters(model, "generate")
            self._replace(model, "generate", self._generate)
        if hasattr(model, "init_continuous_batching"):
            self._replace(model, "init_continuous_batching", refuse_continuous_batching)

    def _replace(self, module: Any, name: str, method: Callable[..., Any]) -> None:
        self._replaced[name] = module, vars(module).get(name)
        vars(module)[name] = method

    def _own(self, name: str) -> Callable[..., Any]:
        """What :meth:`_replace` has replaced."""
        module, own = self._replaced[name]
        return partial(getattr(type(module), name), module) if own is None else own

    def __getstate__(self) -> dict[str, Any]:
        """For a copy of the model."""
        own = {"_local", "_graphs", "_asked_graphs", "traces"}
        state = {name: value for name, value in vars(self).items() if name not in own}
        return {**state, "_graphs": None, "_asked_graphs": None, "run": replace(self.run, graphs=False)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In the copy."""
        self.__dict__ = {**state, "_local": _Local(), "traces": deque(maxlen=TRACES_KEPT)}

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
        policy.place(self._devices())
        self._policy = policy

    @property
    def graphs(self) -> Graphs | None:
        """What replays recorded work; may be replaced between prefills, also by "auto".

        Raises:
            ValueError: on replacing it where the decoder cannot be recorded.
        """
        return self._graphs

    @graphs.setter
    def graphs(self, graphs: Graphs | Literal["auto"] | None) -> None:
        self._asked_graphs: Graphs | Literal["auto"] | None = graphs
        if graphs == "auto":
            graphs = default_graphs(self._stack)
        elif graphs is not None:
            graphs.check(self._stack)
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
        self._asked_kernel = kernel
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
        outer, traces = self._local.traces, []
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
        if vars(self._decoder).get("_exit_handle") is not self:
            return
        del vars(self._decoder)["_exit_handle"]
        for name, (module, own) in self._replaced.items():
            del vars(module)[name]
            if own is not None:
                vars(module)[name] = own
        for hook in self._hooks:
            hook.remove()
        if self._meter is not None:
            self._meter.remove()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the model's ``generate``.

        Raises:
            ValueError: it was asked for what an attached model cannot do.
        """
        given = {**dict(zip(self._generate_names, args, strict=False)), **kwargs}
        if self._meter is not None:
            self._meter.take()  # not of this prompt, whose images may be encoded before the model is called
        outer = self._local.generation
        self._local.generation = Generation.of(self._model, given, self._ids_are_columns)
        try:
            return self._own("generate")(*args, **kwargs)
        finally:
            self._local.generation = outer

    def _encode(self, pixels: Tensor) -> Tensor:
        """Stands in for the model's encoder."""
        assert self._encoder is not None
        graphs, plain = self._usable_graphs(), self._own(self._encoder)
        return plain(pixels) if graphs is None else graphs.call(self._vision, plain, pixels)

    def _note_prompt(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the family's entry runs."""
        kwargs = {**dict(zip(self._entry_names, args, strict=False)), **kwargs}
        if self._meter is not None and self._local.generation is None:
            self._meter.take()  # of images that were encoded on their own
        if _columns(kwargs) > 1:
            adapter = adapter_for(self._model)
            assert adapter.visual_mask is not None
            mask = kwargs.get("attention_mask")
            _check_mask(mask)
            self._local.prompt = _Prompt(
                adapter.visual_mask(self._model, kwargs),
                None if adapter.blocks is None else adapter.blocks(self._model, kwargs),
                mask,
            )

    def _forget_prompt(self, module: nn.Module, args: object, output: object) -> None:
        """After it, or after its failure."""
        self._local.prompt = None

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
        for name in OUTPUTS:
            if kwargs.get(name):
                raise _no_output(name)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        local, decoder, stack = self._local, self._decoder, self._stack
        prompt, blocks = local.prompt, None
        if prompt is not None:
            visual_mask, blocks = prompt.visual_mask, prompt.blocks
            attention_mask = prompt.attention_mask if prompt.attention_mask is not None else attention_mask
        elif not self._ids_are_columns:
            _check_mask(attention_mask)
        if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
            attention_mask = None  # the family's own, made of the one that is noted
        embeds: Tensor = decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        embeds = stack.embed(embeds)
        extras = stack.extras(kwargs, embeds)
        if position_ids is not None:
            position_ids = text_positions(position_ids, stack.axes)
        if local.calls is not None:
            local.calls.append(DecoderCall(embeds, attention_mask, position_ids, visual_mask, blocks, extras))
            return DecoderOutput(last_hidden_state=embeds)
        use_cache = decoder.config.use_cache if use_cache is None else use_cache
        given = past_key_values if cache is None else cache
        held = RaggedCache.of(given, len(decoder.layers)) if use_cache or given is not None else None

        batch, columns, _ = embeds.shape
        seen = 0 if held is None else held.columns
        if held is not None and seen and batch != len(held.seen):
            raise ValueError(f"the cache holds {len(held.seen)} samples, the batch has {batch}")
        if held is not None and seen and columns == 1:
            row = self._step(step_row(embeds, held, extras), held)
        else:
            for name in OUTPUTS:
                if getattr(decoder.config, name, False):
                    raise _no_output(f"{name} of the config")
            call = DecoderCall(embeds, attention_mask, position_ids, visual_mask, blocks, extras)
            answers = 0 if local.generation is None else local.generation.answers(seen, columns)
            row = tokens_row(call, held, answers)
            if seen and answers == columns:  # drafted tokens
                row = run_layers(stack, row, cache=held, kernel=self.kernel)
            else:
                row = self._prefill(row, held)
        out = DecoderOutput(last_hidden_state=unpack(row, batch, columns))
        if held is not None:
            out[CACHE] = held
        return out

    def _prefill(self, row: PackedRow, cache: RaggedCache | None) -> PackedRow:
        self._follow()
        graphs = self._usable_graphs()
        trace = ExitTrace(len(self._decoder.layers), row.layout, self._model, self.run)
        if self._meter is not None:
            trace.vision_flops = self._meter.take()
        row = run_layers(
            self._stack,
            row,
            policy=self.policy,
            trace=trace,
            cache=cache,
            graphs=graphs,
            kernel=self.kernel,
        )
        collected = self._local.traces
        (self.traces if collected is None else collected).append(trace)
        return row

    def _step(self, row: PackedRow, cache: RaggedCache) -> PackedRow:
        graphs = self._usable_graphs()
        if graphs is None:
            return run_layers(self._stack, row, cache=cache, kernel=self.kernel)
        return graphs.step(self._stack, row, cache, partial(run_layers, kernel=self.kernel))

    def _follow(self) -> None:
        """Go where the model was moved, if it was.

        Raises:
            ValueError: graphs or kernel cannot be used there.
        """
        where = self._now_where()
        if where == self._where:
            return
        self._stack = adapter_for(self._model).stack(self._decoder)
        self.graphs = self._asked_graphs
        self._policy.place(self._devices())
        now = run_info(self._model)
        self.run = replace(self.run, dtype=now.dtype, device=now.device)
        if self._asked_kernel == AUTO:
            self.kernel = AUTO
        self._where = where

    def _now_where(self) -> tuple[object, ...]:
        """Device and precision of the first and the last layer, which a move of the model changes."""
        ends = self._decoder.layers[0], self._decoder.layers[-1]
        return tuple((_device_of(layer), next(layer.parameters()).dtype) for layer in ends)

    def _devices(self) -> list[torch.device]:
        return [_device_of(layer) for layer in self._decoder.layers]

    def _usable_graphs(self) -> Graphs | None:
        """Recorded work has no gradients."""
        if self._graphs is not None and self._graphs.failed:
            self.graphs = None  # so that reports say so
        return None if torch.is_grad_enabled() else self._graphs


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
    parts = (layer, *layer.modules()) if next(layer.parameters()).is_meta else (layer,)
    return next(filter(None, map(execution_device, parts)), next(layer.parameters()).device)


def _columns(kwargs: dict[str, Any]) -> int:
    given = kwargs.get("input_ids")
    return (kwargs["inputs_embeds"] if given is None else given).shape[1]


def _no_output(name: str) -> ValueError:
    return ValueError(f"{name} is not available while a policy is attached: call handle.detach() first")


def _parameters(module: nn.Module, method: str) -> list[str]:
    """Names of the arguments that a method takes by position, without the module."""
    return list(inspect.signature(getattr(type(module), method)).parameters)[1:]


def _check_mask(mask: object) -> None:
    """Raise ValueError for a mask that says more than which tokens are real."""
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        shown = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask must be (batch, tokens) while a policy is attached, got {shown}: tokens leave, so that "
            "masks between tokens have no meaning"
        )
