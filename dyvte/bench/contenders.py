"""Who is compared. Each contender readies the model, outside the clock, and takes it back afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
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
from dyvte.gates.exit import LearnedExit
from dyvte.gates.gate import ExitGates
from dyvte.reduction.fastv import FastV

Exits = Sequence[int | None]
NAMES = ("baseline", "packed", "never", "gates", "fixed", "fastv", "ahead", "graphs", "paper")
MIXED = "mixed"


@dataclass(frozen=True, eq=False)
class Contender:
    """One way to run the model.

    Attributes:
        name: as in tables.
        kernel: attention implementation.
        policy: what is attached; None runs transformers' own forward.
        exits: exit layer of each sample, None where the image stays; None as a whole where it is no exit (FastV).
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
        """The model with this contender's kernel and policy."""
        model.set_attn_implementation(self.kernel)
        if self.policy is None:
            yield None
            return
        with attach(model, self.policy, self.graphs) as handle:
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
    """Gates of the usual size that do their usual work and then fire where they were told to.

    Random gates would fire anywhere; a time needs a known exit layer.
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


def scheduled_exit(gates: ScheduledGates, exits: Exits) -> LearnedExit:
    """A learned exit that takes these exits; the weights, as large as some layers of the model, are shared."""
    planned = copy.copy(gates)
    planned.schedule(exits)
    return LearnedExit(planned)


def mixed_exits(batch: int, num_layers: int) -> Exits:
    """One exit layer per sample, spread evenly over the decoder."""
    return [(2 * sample + 1) * num_layers // (2 * batch) for sample in range(batch)]


def make_contenders(
    model,
    batch: int,
    exit_layers: Sequence[int | str],
    kernel: str,
    names: Sequence[str] | None = None,
    gate_width: int = 2048,
) -> list[Contender]:
    """The contenders of one batch size.

    Args:
        exit_layers: layers (zero-based) at which gates and fixed exits let the image go; "mixed" for another layer
            for each sample, left out at batch 1, where nothing can mix.
        names: some of :data:`NAMES`; by default all whose attention kernel is the baseline's, ``ahead`` and
            ``graphs`` on a CUDA device only.

    Raises:
        ValueError: on an unknown name, an exit layer that the model does not have, or graphs without a CUDA device.
    """
    layers = model.config.num_hidden_layers
    names = list(names) if names else [name for name in NAMES if _by_default(name, layers, model.device)]
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(f"unknown contenders {', '.join(unknown)}: choose from {', '.join(NAMES)}")
    for layer in exit_layers:
        if layer != MIXED and not 0 <= int(layer) < layers:
            raise ValueError(f"exit layer {layer} is not one of the model's layers 0..{layers - 1}")
    never: Exits = [None] * batch
    gates: Any = (
        make_gates(model, gate_width) if {"never", "gates", "ahead", "graphs", "paper"} & set(names) else None
    )
    makers: dict[str, Callable[[], list[Contender]]] = {
        "baseline": lambda: [Contender("baseline", kernel, None, never)],
        "packed": lambda: [Contender("packed, no exit", kernel, NoExit(), never)],
        "never": lambda: [Contender("gates, never fire", kernel, scheduled_exit(gates, never), never)],
        "gates": lambda: [
            _by_gates(gates, layer, batch, layers, kernel) for layer in _possible(exit_layers, batch)
        ],
        "fixed": lambda: [_fixed(int(layer), batch, kernel) for layer in exit_layers if layer != MIXED],
        "fastv": lambda: [Contender("FastV K=2 R=50%", kernel, FastV(k=2, r=0.5), None)],
        "ahead": lambda: [
            _looking_ahead(contender) for contender in [*makers["never"](), *makers["gates"]()]
        ],
        "graphs": lambda: [
            _with_graphs(model, contender) for contender in [*makers["packed"](), *makers["gates"]()]
        ],
        "paper": lambda: [_paper(gates, layer, batch) for layer in [None, *exit_layers] if layer != MIXED],
    }
    return [contender for name in names for contender in makers[name]()]


def _by_default(name: str, layers: int, device: torch.device) -> bool:
    """FastV's K = 2 needs a third layer, two ways are for accelerators; the paper's has another attention kernel."""
    cuda = device.type == "cuda"
    return {"paper": False, "fastv": layers > 2, "ahead": cuda, "graphs": cuda}.get(name, True)


def _looking_ahead(contender: Contender) -> Contender:
    policy: Any = replace(contender.policy, ahead=True)  # type: ignore[type-var]
    return replace(contender, name="ahead, " + contender.name.partition(", ")[2], policy=policy)


def _with_graphs(model, contender: Contender) -> Contender:
    graphs = Graphs()
    graphs.check(model.model)
    name = "graphs, " + contender.name.partition(", ")[2]
    return replace(contender, name=name, graphs=graphs)


def _possible(exit_layers: Sequence[int | str], batch: int) -> list[int | str]:
    return [layer for layer in exit_layers if layer != MIXED or batch > 1]


def _by_gates(gates, layer: int | str, batch: int, layers: int, kernel: str) -> Contender:
    exits: Exits = mixed_exits(batch, layers) if layer == MIXED else [int(layer)] * batch
    name = "gates, mixed exits" if layer == MIXED else f"gates, exit {layer}"
    return Contender(name, kernel, scheduled_exit(gates, exits), exits, layer)


def _fixed(layer: int, batch: int, kernel: str) -> Contender:
    return Contender(f"fixed, exit {layer}", kernel, FixedExit(layer), [layer] * batch, layer)


def _paper(gates, layer, batch: int) -> Contender:
    exits: Exits = [None if layer is None else int(layer)] * batch
    name = "eager, all weights" + ("" if layer is None else f", exit {layer}")
    return Contender(name, "eager", None, exits, layer, PaperWay(scheduled_exit(gates, exits).gates))


def check_kernels(contenders: Sequence[Contender], allow_unequal: bool) -> None:
    """Raise ValueError when contenders use different attention kernels, unless that is allowed."""
    by_kernel: dict[str, list[str]] = {}
    for contender in contenders:
        by_kernel.setdefault(contender.kernel, []).append(contender.name)
    if len(by_kernel) > 1 and not allow_unequal:
        listed = "; ".join(f"{kernel}: {', '.join(names)}" for kernel, names in by_kernel.items())
        raise ValueError(
            f"these contenders use different attention kernels ({listed}), so their times do not compare methods: "
            "leave some out of --contenders, or add --allow-unequal-kernels"
        )
