"""The variants that are compared: ways to run one model. Preparing and restoring the model is not timed.

Called throughout :mod:`dyvte.bench`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dyvte.bench.graphed import OneGraph
from dyvte.bench.paper_way import PaperWay
from dyvte.bench.peak import Peak
from dyvte.bench.shapes import PixelPrompts, Prompts
from dyvte.decoding.attach import Handle, attach
from dyvte.decoding.attention.plan import STOCK
from dyvte.decoding.graphs import Graphs
from dyvte.decoding.policy import FixedExit, NoExit, Policy
from dyvte.families.base import stack_of
from dyvte.gates.exit import LearnedExit
from dyvte.gates.gate import ExitGates
from dyvte.reduction.fastv import FastV

Exits = Sequence[int | None]
NAMES = (
    *("baseline", "one-graph", "static", "packed", "never", "gates", "fixed", "fastv"),
    *("graphs", "compiled", "paper"),
)
ONLY = {"one-graph": ("prefill",), "static": ("generate",), "paper": ("prefill",)}
"""Commands that a variant is for, where it is not for all."""
MIXED = "mixed"
WARM = 3
"""Runs after which all is recorded that is recorded."""


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
        way: runs the prefill instead of the model's forward.
        graphs: replays what can be recorded as CUDA graphs.
        generation: further keywords of ``generate``.
    """

    name: str
    kernel: str
    policy: Policy | None
    exits: Exits | None
    exit_layer: int | str | None = None
    way: PaperWay | OneGraph | None = None
    graphs: Graphs | None = None
    generation: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def ready(self, model) -> Iterator[Handle | None]:
        """The model with this variant's kernel and policy."""
        model.set_attn_implementation(STOCK.get(self.kernel, self.kernel))
        if self.policy is None:
            yield None
            return
        with attach(model, self.policy, self.graphs, self.kernel) as handle:
            yield handle

    def prefill(self, model, prompts: Prompts | PixelPrompts):
        """One prefill of the readied model that fills a cache and gives the next token's logits."""
        if self.way is not None:
            assert isinstance(prompts, Prompts)
            return self.way.prefill(model, prompts)
        return model(**prompts.inputs(), use_cache=True, logits_to_keep=1)

    def memory(self, model, work: Callable[[], object]) -> dict[str, float | None]:
        """What ``work`` on the readied model takes beside the weights; see :class:`~dyvte.bench.peak.Peak`."""
        if self.graphs is not None:
            self.graphs.close()  # what it records counts
        with Peak(model.device) as peak, self.ready(model):
            for _ in range(1 if self.graphs is None else WARM):
                work()
        return peak.numbers


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
    config = model.config.get_text_config()
    with torch.device(model.device):
        gates = ScheduledGates(config.num_hidden_layers, config.hidden_size, width=width)
    return gates.to(model.dtype).requires_grad_(False)


def usual_names(model, command: str) -> list[str]:
    """The variants that a command compares where nobody says which.

    All whose attention kernel is the baseline's; those with graphs or compiled decoding on a CUDA device only.
    """
    left_out = {"paper"}
    if model.device.type != "cuda":
        left_out |= {"one-graph", "static", "graphs", "compiled"}
    if model.config.get_text_config().num_hidden_layers <= 2:
        left_out.add("fastv")  # its K = 2 needs a third layer
    return [name for name in NAMES if name not in left_out and command in ONLY.get(name, (command,))]


def make_variants(
    model,
    batch: int,
    exit_layers: Sequence[int | str],
    kernel: str,
    names: Sequence[str] | None = None,
    gate_width: int = 2048,
    command: str = "prefill",
) -> list[Variant]:
    """The variants of one batch size.

    Args:
        exit_layers: layers (zero-based) after which gates and fixed exits drop the image; "mixed" for another layer
            for each sample, left out at batch 1.
        names: some of :data:`NAMES`; :func:`usual_names` by default.
        command: that measures them.

    Raises:
        ValueError: on an unknown name, one that the command cannot measure, an exit layer that the model does not
            have, or graphs without a CUDA device.
    """
    depth = model.config.get_text_config().num_hidden_layers
    names = names or usual_names(model, command)
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"unknown variants {', '.join(unknown)}: choose from {', '.join(NAMES)}")
    for name in names:
        if command not in ONLY.get(name, (command,)):
            raise ValueError(
                f"{name} is a variant of {', '.join(ONLY[name])}: leave it out of --variants of {command}"
            )
    layers = [int(layer) for layer in exit_layers if layer != MIXED]
    for layer in layers:
        if not 0 <= layer < depth:
            raise ValueError(f"exit layer {layer} is not one of the model's layers 0..{depth - 1}")
    never: Exits = [None] * batch
    with_gates = {"never", "gates", "graphs", "compiled", "paper"}
    gates: Any = make_gates(model, gate_width) if with_gates & set(names) else None

    def scheduled(exits: Exits) -> ScheduledGates:
        """Gates that take these exits; the weights, as large as some layers of the model, are shared."""
        planned = copy.copy(gates)
        planned.schedule(exits)
        return planned

    def by_gates(name: str, exits: Exits, layer: int | str | None) -> Variant:
        return Variant(f"gates, {name}", kernel, LearnedExit(scheduled(exits)), exits, layer)

    def by_paper(name: str, exits: Exits, layer: int | None) -> Variant:
        return Variant(f"eager, all weights{name}", "eager", None, exits, layer, PaperWay(scheduled(exits)))

    stock = STOCK.get(kernel, kernel)
    packed = Variant("packed, no exit", kernel, NoExit(), never)
    found: list[Variant] = []
    for name in names:
        if name == "baseline":
            found.append(Variant("baseline", stock, None, never))
        elif name == "one-graph":
            found.append(Variant("transformers, one graph", stock, None, never, way=OneGraph()))
        elif name == "static":
            static = {"cache_implementation": "static"}
            found.append(Variant("transformers, static cache", stock, None, never, generation=static))
        elif name == "packed":
            found.append(packed)
        elif name == "never":
            found.append(by_gates("never fire", never, None))
        elif name in ("gates", "graphs", "compiled"):
            firing = [by_gates(f"exit {layer}", [layer] * batch, layer) for layer in layers]
            if MIXED in exit_layers and batch > 1:
                firing.append(by_gates("mixed exits", mixed_exits(batch, depth), MIXED))
            if name != "gates":
                unfired = [packed, by_gates("never fire", never, None)]
                firing = [_with_graphs(model, one, name) for one in [*unfired, *firing]]
            found += firing
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


def _with_graphs(model, variant: Variant, name: str) -> Variant:
    graphs = Graphs(compile=name == "compiled")
    graphs.check(stack_of(model))
    return replace(variant, name=f"{name}, " + variant.name.partition(", ")[2], graphs=graphs)


def check_kernels(variants: Sequence[Variant], allow_unequal: bool) -> None:
    """Raise ValueError when variants use different attention kernels, unless that is allowed."""
    by_kernel: dict[str, list[str]] = {}
    for variant in variants:
        by_kernel.setdefault(STOCK.get(variant.kernel, variant.kernel), []).append(variant.name)
    if len(by_kernel) > 1 and not allow_unequal:
        listed = "; ".join(f"{kernel}: {', '.join(names)}" for kernel, names in by_kernel.items())
        raise ValueError(
            f"these variants use different attention kernels ({listed}), so their times do not compare methods: "
            "leave some out of --variants, or add --allow-unequal-kernels"
        )
