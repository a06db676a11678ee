"""A stand-in for CUDA graphs on a CPU: keeps the operations of a function with their tensors and host values, undoes
what recording did, refuses what waits for the device, and replays into the same memory."""

from __future__ import annotations

from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dyvte.decoding.packed import Layout

REFUSED = {"_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "_unique2"}


class Tape(TorchDispatchMode):
    """Operations in the order in which they were recorded."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self._before = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in REFUSED:
            raise RuntimeError(f"{name} is not possible while a graph is recorded")
        for value, argument in zip(args, func._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._before.append((value, value.clone()))
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def undo(self):
        for tensor, before in reversed(self._before):
            tensor.copy_(before)

    def replay(self):
        for func, args, kwargs, recorded in self.operations:
            fresh = func(*args, **kwargs)
            for old, new in zip(tree_leaves(recorded), tree_leaves(fresh), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(work):
    """What ``CudaGraphs()(work)`` is on a GPU."""
    tape = Tape()
    with patch.object(Layout, "to_device", None), tape:  # copies from the host are not possible either
        work()
    tape.undo()
    return tape.replay
