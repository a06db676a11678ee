"""The most memory in use during some work, above what there was before.

Called by :mod:`dyvte.bench.memory` and :mod:`dyvte.bench.variants`.
"""

from __future__ import annotations

import gc
from pathlib import Path

import torch

MIB = 2**20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """``with Peak(device) as peak: work()``; then ``peak.numbers``.

    Attributes:
        numbers: ``peak_mib``, the most that was allocated, on a CPU the process's resident memory; ``reserved_mib``,
            the most that the allocator kept of a GPU from others. None where the system cannot say.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.numbers: dict[str, float | None] = {}

    def __enter__(self) -> Peak:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device), torch.cuda.memory_reserved(self._device)
        else:
            self._before = _reset_resident(), None
        return self

    def __exit__(self, *exception: object) -> None:
        after: tuple[int | None, int | None]
        if self._device.type == "cuda":
            after = (
                torch.cuda.max_memory_allocated(self._device),
                torch.cuda.max_memory_reserved(self._device),
            )
        else:
            after = _resident("VmHWM"), None
        for name, most, before in zip(("peak_mib", "reserved_mib"), after, self._before, strict=True):
            self.numbers[name] = None if most is None or before is None else (most - before) / MIB


def _reset_resident() -> int | None:
    """Let the peak of resident memory start again; returns the bytes in use."""
    try:
        _CLEAR.write_text("5")  # Linux
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(field: str) -> int | None:
    if not _STATUS.is_file():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    return None
