"""Put a policy into a model, and take it out again.

    handle = attach(model, LearnedExit(gates))     # or: with attach(model, policy) as handle:
    model.generate(...)
    handle.traces[-1].exit_layers
    handle.detach()

While attached, the model's decoder runs the packed layer loop. Nothing of the model's code is replaced: one
instance attribute (the decoder's ``forward``) and, for some families, one hook; ``detach`` removes both.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from dyvte.decoding.attention.interface import check_kernel
from dyvte.decoding.cache.ragged import RaggedCache
from dyvte.decoding.graphs import Graphs
from dyvte.decoding.loop import run_layers
from dyvte.decoding.packed import Layout, PackedRow, pack, to_device, unpack
from dyvte.decoding.policy import Policy
from dyvte.decoding.report import RunInfo
from dyvte.decoding.trace import ExitTrace
from dyvte.families.base import adapter_for
from dyvte.provenance import git_state, versions

TRACES_KEPT = 1024
"""Prefills whose traces a handle keeps: a trace is a few kilobytes, and a server must not fill up with them."""


def is_attached(model: nn.Module) -> bool:
    """Whether a policy is attached to the model."""
    return handle_of(model) is not None


def handle_of(model: nn.Module) -> Handle | None:
    """The handle of the policy attached to the model, or None."""
    return vars(adapter_for(model).decoder(model)).get("_exit_handle")


def attach(model: nn.Module, policy: Policy, graphs: Graphs | None = None) -> Handle:
    """Run the model's prefills under ``policy`` until the handle's ``detach``, or the end of its ``with`` block.

    Args:
        model: LLaVA's own class here, or transformers' ``LlavaForConditionalGeneration``.
        policy: ``NoExit()``, ``FixedExit(layer)``, ``LearnedExit(gates)``, ...
        graphs: ``Graphs()`` records decoding steps and the layers after an exit as CUDA graphs; by default every
            kernel is launched by itself. Make new ones when the model's weights are moved or replaced.

    Raises:
        ValueError: when the model family has no adapter, the policy does not fit the model's depth or width, a
            policy is attached already, the model's attention has no packed form, or it cannot be recorded.
    """
    decoder = adapter_for(model).decoder(model)
    if is_attached(model):
        raise ValueError("a policy is attached to this model already: call detach() on its handle first")
    layer_types = set(getattr(decoder.config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise ValueError(
            f"packed rows need full attention in every layer, this model has {sorted(layer_types)}"
        )
    check_kernel(decoder.config)
    if graphs is not None:
        graphs.check(decoder)
    return Handle(model, policy, graphs)


class Handle:
    """An attached policy; a context manager that detaches at its end.

    Several threads may run the model at once; each collects its own traces with :meth:`collect`.

    Attributes:
        graphs: what replays recorded work, or None.
        traces: one :class:`ExitTrace` per prefill, the newest :data:`TRACES_KEPT`; clear it as you like.
        run: what goes into reports about precision, kernel and device; complete it with digests where they are known.
    """

    def __init__(self, model: nn.Module, policy: Policy, graphs: Graphs | None = None):
        adapter = adapter_for(model)
        self._model = model
        self._decoder = adapter.decoder(model)
        self.policy = policy
        self.graphs = graphs
        self.run = run_info(model, graphs)
        self.traces: deque[ExitTrace] = deque(maxlen=TRACES_KEPT)
        self._collecting = threading.local()
        self._hook = None
        if adapter.visual_mask is not None:
            entry, find_visual = adapter.entry(model), adapter.visual_mask
            names = list(inspect.signature(entry.forward).parameters)

            def add_visual_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
                kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
                if kwargs.get("visual_mask") is None and _columns(kwargs) > 1:
                    kwargs["visual_mask"] = find_visual(model, kwargs)
                return (), kwargs

            self._hook = entry.register_forward_pre_hook(add_visual_mask, with_kwargs=True)
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
        policy.place([_device_of(layer) for layer in self._decoder.layers])
        self._policy = policy

    @contextmanager
    def collect(self) -> Generator[list[ExitTrace]]:
        """A list that takes the traces of this thread's prefills within the block, instead of :attr:`traces`."""
        outer, traces = getattr(self._collecting, "traces", None), []
        self._collecting.traces = traces
        try:
            yield traces
        finally:
            self._collecting.traces = outer

    def detach(self) -> None:
        """Give the model back the forward that it had. A second call does nothing."""
        attributes = vars(self._decoder)
        if attributes.get("_exit_handle") is not self:
            return
        del attributes["_exit_handle"], attributes["forward"]
        if self._own_forward is not None:
            attributes["forward"] = self._own_forward
        if self._hook is not None:
            self._hook.remove()

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
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Stands in for the decoder's forward: (B, S) ids or (B, S, D) embeddings -> states (B, S, D)."""
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.get(name):
                raise ValueError(
                    f"{name} is not available while a policy is attached: call handle.detach() first"
                )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        decoder = self._decoder
        embeds: Tensor = decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = decoder.config.use_cache if use_cache is None else use_cache
        cache = (
            _ragged(past_key_values, len(decoder.layers))
            if use_cache or past_key_values is not None
            else None
        )

        batch, columns, _ = embeds.shape
        if cache is not None and cache.columns:
            row = _continue(cache, embeds, attention_mask, visual_mask)
            row = self._prefill(row, cache) if columns > 1 else self._step(row, cache)
        else:
            row = pack(embeds, attention_mask, position_ids, visual_mask)
            if cache is not None:
                cache.advance(columns, row.layout.positions[row.layout.last_index] + 1)
            row = self._prefill(row, cache)
        return BaseModelOutputWithPast(last_hidden_state=unpack(row, batch, columns), past_key_values=cache)

    def _prefill(self, row: PackedRow, cache: RaggedCache | None) -> PackedRow:
        trace = ExitTrace(len(self._decoder.layers), row.layout, self._model, self.run)
        row = run_layers(
            self._decoder, row, policy=self.policy, trace=trace, cache=cache, graphs=self._usable_graphs()
        )
        collected = getattr(self._collecting, "traces", None)
        (self.traces if collected is None else collected).append(trace)
        return row

    def _step(self, row: PackedRow, cache: RaggedCache) -> PackedRow:
        graphs = self._usable_graphs()
        if graphs is None:
            return run_layers(self._decoder, row, cache=cache)
        return graphs.step(self._decoder, row, cache, run_layers)

    def _usable_graphs(self) -> Graphs | None:
        """Recorded work has no gradients."""
        return None if torch.is_grad_enabled() else self.graphs


def run_info(model: nn.Module, graphs: Graphs | None = None) -> RunInfo:
    """Precision, kernel, device and code, as reports of this model's prefills state them."""
    device: torch.device = model.device  # type: ignore[assignment]
    commit, dirty = git_state()
    return RunInfo(
        dtype=str(model.dtype).removeprefix("torch."),
        attention=adapter_for(model).decoder(model).config._attn_implementation or "sdpa",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        graphs=graphs is not None,
        commit=commit,
        dirty=dirty,
        versions=versions(),
    )


def _device_of(layer: nn.Module) -> torch.device:
    """Where a layer computes, also where accelerate keeps its weights elsewhere until then."""
    hook = getattr(layer, "_hf_hook", None)
    execution = getattr(hook, "execution_device", None)
    return next(layer.parameters()).device if execution is None else torch.device(execution)


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


def _continue(
    cache: RaggedCache, inputs_embeds: Tensor, attention_mask: Tensor | None, visual_mask: Tensor | None
) -> PackedRow:
    """Pack tokens that follow what the cache holds; positions go on from each sample's full length."""
    batch, columns, _ = inputs_embeds.shape
    if batch != len(cache.next_positions):
        raise ValueError(f"the cache holds {len(cache.next_positions)} samples, the batch has {batch}")
    offsets = cache.next_positions
    if columns > 1:
        new = None if attention_mask is None else attention_mask[:, -columns:]
        if visual_mask is not None and visual_mask.shape[1] != columns:
            visual_mask = None  # `generate` repeats the prompt's mask; what follows the prompt is text
        row = pack(inputs_embeds, new, visual_mask=visual_mask)
        cache.advance(columns, offsets + to_device(row.layout.lengths, offsets.device))
        before = cache.columns - columns
        return PackedRow(row.hidden, row.layout.continuing(offsets[row.layout.owner_ids], before))
    cache.advance(1, offsets + 1)
    layout = Layout.of_single_tokens(offsets, extent=cache.columns)
    # a reshape, not a transpose: with strides of a transpose matrix products would copy their weights
    return PackedRow(inputs_embeds.reshape(1, batch, -1), layout)
