"""A decoder that several processes hold together, for models larger than one card.

Each process holds an equal part of every decoder layer, and the rest of the model whole. A layer is gathered before
it runs and given up after it (FSDP2), so that the loop and the model's own code stay as they are.

Gathering takes all processes, so they go through the layers in step. A pass over the layers calls each of them once,
wherever samples exit and however many there are; but processes may need different numbers of passes, because answers
end early and shards of data are uneven. Therefore a process says that it starts a pass, and one without work takes
part in the passes of the others (:func:`in_step`): it gathers, and computes nothing.

Called by :mod:`dyvte.engine.openers`, :mod:`dyvte.gates` and :mod:`llava.train.prepare`.
"""

from __future__ import annotations

import atexit
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from dyvte.families.base import adapter_for


def check_processes() -> None:
    """Raise ValueError when this is the only process."""
    if not dist.is_initialized() or dist.get_world_size() < 2:
        raise ValueError(
            "one process alone cannot share a model: start several with "
            "`python -m torch.distributed.run --nproc_per_node N -m ...`"
        )


def close_group_at_exit() -> None:
    """Close gloo's process group, if there is one, before the interpreter ends: its threads would outlive it.

    One of 17 processes was aborted by that ("terminate called without an active exception", torch 2.13).
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        atexit.register(_close_group)


def _close_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def shard_layers(model: nn.Module, device: torch.device) -> None:
    """Keep this process's part of each decoder layer on ``device``, and all else of the model whole.

    Args:
        model: the same frozen model in every process, on the CPU.
        device: of this process; no two share a GPU.

    Raises:
        ValueError: this is the only process, or weights are quantized.
    """
    check_processes()
    layers = cast(nn.ModuleList, adapter_for(model).decoder(model).layers)
    if any(not parameter.is_floating_point() for parameter in layers.parameters()):
        raise ValueError(
            "quantized weights cannot be shared by processes: load the model in 16 bits, or in one process"
        )
    model.requires_grad_(False)
    close_group_at_exit()
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers:  # each goes to the device whole, and its part stays
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    model.to(device)
    # buffers of a first gathering in inference mode could not be used outside of it
    _gather_in_turn(model)

    def say_so(*_: object) -> None:
        _count_passes(1, device)

    layers[0].register_forward_pre_hook(say_so, prepend=True)  # before the layer is gathered


def is_sharded(model: nn.Module) -> bool:
    """Whether processes share the model's decoder layers."""
    return isinstance(adapter_for(model).decoder(model).layers[0], FSDPModule)


@contextmanager
def in_step(model: nn.Module) -> Generator[None]:
    """A block in which each process runs a sharded model as often as it likes.

    A process that comes to the end waits there for the others, and takes part in their passes. Every process has to
    enter; an error is not waited with. Nothing happens for a model that is not sharded.
    """
    yield
    if not is_sharded(model):
        return
    device = next(model.parameters()).device
    while int(_count_passes(0, device)):
        _gather_in_turn(model)


def _gather_in_turn(model: nn.Module) -> None:
    """What a pass over the layers asks of a process that has nothing to compute."""
    for layer in cast("list[FSDPModule]", adapter_for(model).decoder(model).layers):
        layer.unshard()
        layer.reshard()


def _count_passes(own: int, device: torch.device) -> Tensor:
    """How many processes start a pass over the layers now, given whether this one does."""
    started = torch.tensor(own, device=device)
    dist.all_reduce(started)
    return started
