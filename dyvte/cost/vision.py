"""FLOPs of vision towers and projectors, counted by torch's formulas while they run.

For LLaVA's CLIP there is a formula (:func:`dyvte.cost.flops.vision_flops`); other towers differ too much.
:mod:`dyvte.decoding.attach` puts a :class:`VisionMeter` on them. Counting slows a forward, so it is done once per
shape of the inputs: FLOPs must depend on nothing that ``_shape`` leaves out.

Called by :mod:`dyvte.decoding.attach` and :mod:`llava.model.multimodal_encoder.eagle_encoder`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

FORMULAS: dict[Any, Any] = {
    **flop_registry,
    # torch's registry lacks the kernel for CPUs, whose first arguments are the same
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
}


class FlopCounter(TorchDispatchMode):
    """Counts FLOPs into ``flops``. Torch's ``FlopCounterMode`` also tracks modules, which fails without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; one without a formula is counted by its parts."""
        kwargs = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


class _Running(threading.local):
    """Per thread: FLOPs since the last :meth:`VisionMeter.take`, and the metered modules that are running."""

    def __init__(self) -> None:
        self.total = 0
        self.modules: list[tuple[object, FlopCounter | None]] = []


class VisionMeter:
    """Counts FLOPs of modules until :meth:`remove`, for each thread apart. Of nested modules the outermost counts."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._known: dict[object, int] = {}
        self._running = _Running()
        self._hooks: list[RemovableHandle] = []
        for module in _called(modules):
            self._hooks.append(module.register_forward_pre_hook(self._begin, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._end, always_call=True))

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process: counts are known by the address of a module."""
        return {"_hooks": self._hooks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a copy of the model, or in another process."""
        self.__dict__ = {"_known": {}, "_running": _Running(), **state}

    def take(self) -> int:
        """FLOPs of this thread since the last call."""
        total, self._running.total = self._running.total, 0
        return total

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shapes = tuple(map(_shape, args)), tuple((name, _shape(value)) for name, value in kwargs.items())
        key = id(module), shapes
        counter = None if key in self._known or self._running.modules else FlopCounter()
        if counter is not None:
            counter.__enter__()
        self._running.modules.append((key, counter))

    def _end(self, module: nn.Module, args: object, output: object) -> None:
        key, counter = self._running.modules.pop()
        if counter is not None:
            counter.__exit__(None, None, None)
            self._known[key] = counter.flops
        if not self._running.modules:
            self._running.total += self._known[key]


def counted_flops(module: nn.Module, shape: tuple[int, ...]) -> int:
    """FLOPs of a module on one input of this shape; nothing is computed (meta device)."""
    weights = {name: weight.to("meta", torch.float32) for name, weight in module.state_dict().items()}
    counter = FlopCounter()
    with torch.no_grad(), counter:
        functional_call(module, weights, (torch.empty(shape, device="meta"),))
    return counter.flops


def _called(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The modules, instead of lists the modules in them: a list is never called itself."""
    for module in modules:
        yield from _called(module) if isinstance(module, nn.ModuleList) else (module,)


def _shape(value: Any) -> object:
    """What FLOPs can depend on: the shape of features, the values of small integer tensors (grids of patches)."""
    if not isinstance(value, torch.Tensor):
        return value if isinstance(value, (int, float, str, type(None))) else type(value)
    if value.is_floating_point() or value.numel() > 256:
        return tuple(value.shape)
    return tuple(value.flatten().tolist())
