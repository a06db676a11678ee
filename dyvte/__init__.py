"""Dynamic Visual-Token Exit (arXiv:2411.19628): visual tokens leave a multimodal LLM when no longer needed."""

from dyvte.decoding.attach import attach
from dyvte.decoding.policy import FixedExit, NoExit
from dyvte.decoding.trace import ExitTrace
from dyvte.gates.exit import LearnedExit
from dyvte.gates.gate import ExitGates

__all__ = ["ExitGates", "ExitTrace", "FixedExit", "LearnedExit", "NoExit", "attach"]
