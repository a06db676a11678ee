"""Command-line flags for the shape of fresh gates."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from dyvte.gates.gate import KINDS
from dyvte.gates.states import ATTENTION_STATES, PAPER_STATES, STATES

SMALL, SMALL_KIND, SMALL_WIDTH = "small", "shared", 64
"""What ``small`` stands for: a shared gate of this width."""
PAPER_WIDTH = 2048


def add_gate_arguments(
    parser: argparse.ArgumentParser, states: Sequence[str] = STATES + ATTENTION_STATES
) -> None:
    """States, kind, width, rank, layers and gain; the defaults are the paper's."""
    parser.add_argument(
        "--states", nargs="+", choices=states, default=list(PAPER_STATES), help="what gates look at"
    )
    parser.add_argument(
        "--gate-kind",
        choices=(*KINDS, SMALL),
        default="full",
        help=f"full: the paper's; small: {SMALL_KIND}, {SMALL_WIDTH} wide (default: %(default)s)",
    )
    parser.add_argument(
        "--width", type=int, help=f"hidden units of a gate (default: {PAPER_WIDTH}, small: {SMALL_WIDTH})"
    )
    parser.add_argument("--rank", type=int, help="of the first matrix of low_rank gates")
    parser.add_argument(
        "--gated-layers", type=int, nargs="+", help="zero-based layers that have a gate (default: all)"
    )
    parser.add_argument(
        "--gain", type=float, default=1.0, help="of the fresh weights; below the paper's 1 for large states"
    )


def gate_options(args: Any) -> dict[str, Any]:
    """Keyword arguments of ``ExitGates`` for parsed flags: ``gate_kind``, ``width``, ``states``, ``rank``,
    ``gated_layers`` and ``gain``.
    """
    small = args.gate_kind == SMALL
    return {
        "width": args.width or (SMALL_WIDTH if small else PAPER_WIDTH),
        "states": args.states,
        "kind": SMALL_KIND if small else args.gate_kind,
        "rank": args.rank,
        "gated_layers": args.gated_layers,
        "gain": args.gain,
    }
