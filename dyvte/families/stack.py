"""A family's decoder as :mod:`dyvte.decoding.loop` runs it: what differs between decoders, in one object.

Most Llama-like decoders need nothing but :class:`Stack`; other families subclass it in their own files. Methods must
give what the family's own forward in transformers gives (``tests/families``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dyvte.families.protocols import Decoder
from dyvte.families.rules import LayerRule

if TYPE_CHECKING:
    from dyvte.decoding.attention.interface import PackedContext
    from dyvte.decoding.packed import Layout

Rope = Any
"""What a rotary module returns: cosines and sines, or one complex tensor (Llama 4)."""


class Stack:
    """Layers, their kinds and rules, rotary embeddings by kind, and further inputs of layers.

    Attributes:
        decoder: a Llama-like module.
        kinds: per layer, its kind as in ``config.layer_types``.
        devices: per layer, where accelerate has it run; None where it runs where the states are.
        rules: per layer.
        axes: of rotary positions, where they have several (M-RoPE).

    Raises:
        ValueError: a layer is of a kind that has no packed form.
    """

    norm_name = "norm"
    """What the decoder calls its final norm."""
    window_cuts_blocks = True
    computes_all_experts = False
    """Whether a mixture of experts computes all experts for every token (and multiplies most results by zero)."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.config = decoder, decoder.config
        self.layers, self.norm = decoder.layers, getattr(decoder, self.norm_name)
        self.devices = tuple(execution_device(layer) for layer in self.layers)
        self.kinds = tuple(self.kind(index) for index in range(len(self.layers)))
        softcap: float | None = getattr(self.config, "attn_logit_softcapping", None)
        self.rules = tuple(replace(self.rule(kind), softcap=softcap) for kind in self.kinds)
        rotary: Any = decoder.rotary_emb
        sections = (getattr(self.config, "rope_parameters", None) or {}).get("mrope_section")
        self._has_axes, self.axes = sections is not None, 3 if sections is None else len(sections)
        self._rope_by_kind = "layer_type" in inspect.signature(rotary.forward).parameters

    @property
    def plain(self) -> bool:
        """Whether all layers have full causal attention and no further inputs."""
        return type(self) is Stack and not any(rule.local for rule in self.rules)

    def kind(self, index: int) -> str:
        """The kind of a layer. Where the config does not list kinds, all layers have the window that it names, if its
        family knows windows: a Llama computes full attention whatever ``sliding_window`` its file may hold.
        """
        kinds: Sequence[str] | None = getattr(self.config, "layer_types", None)
        if kinds is not None:
            if index >= len(kinds):
                raise ValueError(f"layer_types of the config names {len(kinds)} layers, the model has more")
            return kinds[index]
        knows_windows = "sliding_window" in inspect.signature(type(self.config)).parameters
        if knows_windows and self.config.sliding_window is not None:
            return "sliding_attention"
        return "full_attention"

    def rule(self, kind: str) -> LayerRule:
        """The rule of a kind of layer."""
        if kind == "full_attention":
            return LayerRule()
        if kind == "sliding_attention":
            return LayerRule(window=self.config.sliding_window, window_cuts_blocks=self.window_cuts_blocks)
        if kind == "chunked_attention":
            return LayerRule(chunk=self.config.attention_chunk_size)
        raise ValueError(
            f"layers of kind {kind!r} have no packed form: exits are not available for this model"
        )

    def ropes(self, hidden: Tensor, positions: Tensor) -> Mapping[str, Rope]:
        """Rotary embeddings by kind of layer, for tokens at ``positions`` (1, T) or (axes, 1, T)."""
        kinds = dict.fromkeys(self.kinds)
        if self._has_axes and positions.ndim == 2:  # M-RoPE of transformers 5.17 takes text on three axes too
            positions = positions.expand(self.axes, *positions.shape)
        if self._rope_by_kind:
            return {kind: self.decoder.rotary_emb(hidden, positions, kind) for kind in kinds}
        return dict.fromkeys(kinds, self.decoder.rotary_emb(hidden, position_ids=positions))

    def embed(self, embeds: Tensor) -> Tensor:
        """The input of the first layer, from the embeddings (B, S, D) that the decoder was called with."""
        return embeds

    def extras(self, kwargs: Mapping[str, Any], embeds: Tensor) -> Any:
        """Further inputs of some layers, by slot of the padded batch; rows carry them as ``layout.extras``.

        Args:
            kwargs: further arguments that the model called its decoder with.
            embeds: (B, S, D), after :meth:`embed`.
        """
        return None

    def before(self, index: int, hidden: Tensor, layout: Layout) -> Tensor:
        """The states (1, T, D) that enter layer ``index``; after the last layer, the norm."""
        return hidden

    def arguments(self, index: int, layout: Layout) -> dict[str, Any]:
        """Further keyword arguments of a layer's forward."""
        return {}

    rescale: Callable[[Any, Tensor, Layout], Tensor] | None = None
    """(attention module, queries (1, heads, T, head_dim), layout) -> queries, for layers that scale queries by their
    index in the row."""

    def run(
        self,
        index: int,
        layer: nn.Module,
        hidden: Tensor,
        rope: Rope,
        positions: Tensor,
        context: PackedContext,
    ) -> Tensor:
        """States (1, T, D) after ``layer``, which is :attr:`layers` at ``index``."""
        out = layer(
            hidden,
            **self.arguments(index, context.layout),
            attention_mask=None,
            position_ids=positions if positions.ndim == 2 else None,
            position_embeddings=rope,
            packed=context,
        )
        return out[0] if isinstance(out, tuple) else out


class TokenFeatures:
    """Features of some tokens of the padded batch, added to their states before some layers (deepstack).

    Args:
        mask: (B, S) bool, the n tokens with features.
        features: layer -> (n, D), added before that layer to these tokens in order.
    """

    def __init__(self, mask: Tensor, features: Mapping[int, Tensor]) -> None:
        self._features = features
        flags = mask.cpu().numpy().ravel().astype(bool)
        self._rank = np.where(flags, flags.cumsum() - 1, -1)
        self._found: tuple[Layout | None, Tensor | None, Tensor | None] = (None, None, None)

    def add(self, index: int, hidden: Tensor, layout: Layout) -> Tensor:
        """States with the features of the tokens that are still in the row."""
        features = self._features.get(index)
        if features is None:
            return hidden
        if self._found[0] is not layout:
            ranks = self._rank[layout.origins]
            at = np.flatnonzero((ranks >= 0) & np.array([o is None for o in layout.forked_at])[layout.owners])
            self._found = layout, layout.to_device(at), layout.to_device(ranks[at])
        _, at, ranks = self._found
        assert at is not None and ranks is not None
        if not len(at):
            return hidden
        return hidden.index_add(1, at, features.to(hidden).index_select(0, ranks)[None])


def execution_device(module: nn.Module) -> torch.device | None:
    """Where accelerate has a module run, whose weights may be elsewhere until then; None without accelerate."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return None if device is None else torch.device(device)


def by_slot(values: Tensor, layout: Layout) -> Tensor:
    """(B, S, ...) of the padded batch -> (1, T, ...) of the row's tokens."""
    return values.flatten(0, 1).to(layout.slots.device).index_select(0, layout.slots)[None]


def text_positions(positions: Tensor, axes: int) -> Tensor:
    """Positions without the row of text positions that ``generate`` puts in front of several axes."""
    return positions[1:] if positions.ndim == 3 and len(positions) == axes + 1 else positions


def next_positions(positions: Tensor, owners: Tensor, sequences: int) -> Tensor:
    """(G,) long, one more than the largest position of each sequence on any axis."""
    highest = positions if positions.ndim == 1 else positions.amax(0)
    out = torch.full((sequences,), -1, dtype=highest.dtype, device=highest.device)
    return out.scatter_reduce(0, owners, highest, "amax") + 1
