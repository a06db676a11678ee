"""The variants that are compared: ways to run one model. Preparing and restoring the model is not timed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dyvte.bench.paper_way import PaperWay
from dyvte.bench.shapes import Prompts
from dyvte.decoding.attach import Handle, attach
from dyvte.decoding.graphs import Graphs
from dyvte.decoding.policy import FixedExit, NoExit, Policy
from dyvte.families.base import stack_of
from dyvte.gates.exit import LearnedExit
from dyvte.gates.gate import ExitGates
from dyvte.reduction.fastv import FastV

Exits = Sequence[int | None]
NAMES = ("baseline", "packed", "never", "gates", "fixed", "fastv", "graphs", "paper")
MIXED = "mixed"


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to run the model.

    Attributes:
        name: as in tables.
        kernel: attention implementation.
        policy: what is attached; None runs transformers' own forward.
        exits: exit layer of each sample, None where the image stays; None as a whole for a method that is no exit
            (FastV).
        exit_layer: the layer, or "mixed", that a plot puts it at.
        paper: runs the prefill in the way of the paper's code instead.
        graphs: replays what can be recorded as CUDA graphs.
    """

    name: str
    kernel: str
    policy: Policy | None
    exits: Exits | None
    exit_layer: int | str | None = None
    paper: PaperWay | None = None
    graphs: Graphs | None = None

    @contextmanager
    def ready(self, model) -> Iterator[Handle | None]:
        """The model with this variant's kernel and policy."""
        model.set_attn_implementation(self.kernel)
        if self.policy is None:
            yield None
            return
        with attach(model, self.policy, self.graphs or False, self.kernel) as handle:
            yield handle

    def prefill(self, model, prompts: Prompts):
        """One prefill of the readied model that fills a cache and gives the next token's logits."""
        if self.paper is not None:
            return self.paper.prefill(model, prompts)
        return model(
            inputs_embeds=prompts.inputs_embeds,
            visual_mask=prompts.visual_mask,
            use_cache=True,
            logits_to_keep=1,
        )


class ScheduledGates(ExitGates):
    """Gates of the usual size that run in full and then fire where a schedule says.

    Untrained gates would fire at arbitrary layers; a time needs a known exit layer.
    """

    def schedule(self, exits: Exits) -> None:
        """Fire for sample ``i`` after layer ``exits[i]``; never where that is None."""
        device = next(self.parameters()).device
        self._planned = []
        for layer in range(self.num_layers):
            present = [2.0 if at == layer else -2.0 for at in exits if at is None or at >= layer]
            self._planned.append(torch.tensor(present, device=device))

    def exit_probability(self, layer: int, states: Tensor) -> Tensor:
        """(n,) above 1 where the sample is to exit after this layer, else below 0, after the gate ran."""
        return super().exit_probability(layer, states) + self._planned[layer]


def make_gates(model, width: int) -> ScheduledGates:
    """Gates of the model's size, in its dtype and on its device, without a schedule."""
    config = model.config
    with torch.device(model.device):
        gates = ScheduledGates(config.num_hidden_layers, config.hidden_size, width=width)
    return gates.to(model.dtype).requires_grad_(False)


def make_variants(
    model,
    batch: int,
    exit_layers: Sequence[int | str],
    kernel: str,
    names: Sequence[str] | None = None,
    gate_width: int = 2048,
) -> list[Variant]:
    """The variants of one batch size.

    Args:
        exit_layers: layers (zero-based) after which gates and fixed exits drop the image; "mixed" for another layer
            for each sample, left out at batch 1.
        names: some of :data:`NAMES`; by default all whose attention kernel is the baseline's, ``graphs`` on a CUDA
            device only.

    Raises:
        ValueError: on an unknown name, an exit layer that the model does not have, or graphs without a CUDA device.
    """
    depth = model.config.num_hidden_layers
    if not names:
        # the paper's way has another attention kernel, and FastV's K = 2 needs a third layer
        left_out = {"paper": True, "fastv": depth <= 2, "graphs": model.device.type != "cuda"}
        names = [name for name in NAMES if not left_out.get(name)]
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"unknown variants {', '.join(unknown)}: choose from {', '.join(NAMES)}")
    layers = [int(layer) for layer in exit_layers if layer != MIXED]
    for layer in layers:
        if not 0 <= layer < depth:
            raise ValueError(f"exit layer {layer} is not one of the model's layers 0..{depth - 1}")
    never: Exits = [None] * batch
    gates: Any = make_gates(model, gate_width) if {"never", "gates", "graphs", "paper"} & set(names) else None

    def scheduled(exits: Exits) -> ScheduledGates:
        """Gates that take these exits; the weights, as large as some layers of the model, are shared."""
        planned = copy.copy(gates)
        planned.schedule(exits)
        return planned

    def by_gates(name: str, exits: Exits, layer: int | str | None) -> Variant:
        return Variant(f"gates, {name}", kernel, LearnedExit(scheduled(exits)), exits, layer)

    def by_paper(name: str, exits: Exits, layer: int | None) -> Variant:
        return Variant(f"eager, all weights{name}", "eager", None, exits, layer, PaperWay(scheduled(exits)))

    packed = Variant("packed, no exit", kernel, NoExit(), never)
    found: list[Variant] = []
    for name in names:
        if name == "baseline":
            found.append(Variant("baseline", kernel, None, never))
        elif name == "packed":
            found.append(packed)
        elif name == "never":
            found.append(by_gates("never fire", never, None))
        elif name in ("gates", "graphs"):
            firing = [by_gates(f"exit {layer}", [layer] * batch, layer) for layer in layers]
            if MIXED in exit_layers and batch > 1:
                firing.append(by_gates("mixed exits", mixed_exits(batch, depth), MIXED))
            found += firing if name == "gates" else [_with_graphs(model, one) for one in [packed, *firing]]
        elif name == "fixed":
            found += [
                Variant(f"fixed, exit {layer}", kernel, FixedExit(layer), [layer] * batch, layer)
                for layer in layers
            ]
        elif name == "fastv":
            found.append(Variant("FastV K=2 R=50%", kernel, FastV(k=2, r=0.5), None))
        elif name == "paper":
            found.append(by_paper("", never, None))
            found += [by_paper(f", exit {layer}", [layer] * batch, layer) for layer in layers]
    return found


def mixed_exits(batch: int, num_layers: int) -> Exits:
    """One exit layer per sample, spread evenly over the decoder."""
    return [(2 * sample + 1) * num_layers // (2 * batch) for sample in range(batch)]


def _with_graphs(model, variant: Variant) -> Variant:
    graphs = Graphs()
    graphs.check(stack_of(model))
    return replace(variant, name="graphs, " + variant.name.partition(", ")[2], graphs=graphs)


def check_kernels(variants: Sequence[Variant], allow_unequal: bool) -> None:
    """Raise ValueError when variants use different attention kernels, unless that is allowed."""
    by_kernel: dict[str, list[str]] = {}
    for variant in variants:
        by_kernel.setdefault(variant.kernel, []).append(variant.name)
    if len(by_kernel) > 1 and not allow_unequal:
        listed = "; ".join(f"{kernel}: {', '.join(names)}" for kernel, names in by_kernel.items())
        raise ValueError(
            f"these variants use different attention kernels ({listed}), so their times do not compare methods: "
            "leave some out of --variants, or add --allow-unequal-kernels"
        )
