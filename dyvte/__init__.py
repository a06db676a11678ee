"""Dynamic Visual-Token Exit (arXiv:2411.19628): visual tokens leave a multimodal LLM when no longer needed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dyvte.decoding.attach import attach
    from dyvte.decoding.graphs import Graphs
    from dyvte.decoding.policy import FixedExit, NoExit
    from dyvte.decoding.trace import ExitTrace
    from dyvte.gates.exit import LearnedExit
    from dyvte.gates.gate import ExitGates

__version__ = "0.1.0"

__all__ = ["ExitGates", "ExitTrace", "FixedExit", "Graphs", "LearnedExit", "NoExit", "__version__", "attach"]

_HOMES = {
    "ExitGates": "dyvte.gates.gate",
    "ExitTrace": "dyvte.decoding.trace",
    "FixedExit": "dyvte.decoding.policy",
    "Graphs": "dyvte.decoding.graphs",
    "LearnedExit": "dyvte.gates.exit",
    "NoExit": "dyvte.decoding.policy",
    "attach": "dyvte.decoding.attach",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that commands which need no model, such as scoring, do not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
