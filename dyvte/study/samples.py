"""What studies share: a benchmark's questions, and the flags of the command line that asks them."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dyvte.benchmarks import BENCHMARKS, get_benchmark
from dyvte.decoding.policy import FixedExit, NoExit, Policy
from dyvte.engine.answers_file import run_settings
from dyvte.engine.questions import Item, check_items
from dyvte.engine.run import question_parser
from dyvte.gates.exit import LearnedExit
from dyvte.provenance import git_state, hardware, sha256_of, versions


def build_parser(arguments: Sequence[str] | None, description: str) -> argparse.ArgumentParser:
    """A parser with the benchmark's name, its folder, ``--output``, and the flags of its question format.

    Args:
        arguments: the command line, which names the benchmark; that of the process by default.
    """
    words = sys.argv[1:] if arguments is None else arguments
    name = next((word for word in words if word in BENCHMARKS), "gqa")  # --help works without one
    parser = question_parser(get_benchmark(name).questions, description)
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--data-dir", type=Path, required=True, help="the benchmark's folder")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    return parser


def add_limit(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """The flag for how many questions to take."""
    parser.add_argument(
        "--limit",
        type=int,
        default=default,
        metavar="N",
        help="take N questions, spread evenly over the file (default: %(default)s)",
    )


def read_items(args: argparse.Namespace) -> tuple[list[Item], str]:
    """The questions that ``args`` ask for, all usable, and the folder of their images. Sets ``args.question_file``.

    Raises:
        FileNotFoundError, ValueError: the benchmark's files are missing or broken, or the limit is not positive.
    """
    benchmark = get_benchmark(args.name)
    args.question_file = str(args.data_dir / benchmark.question_file)
    items = benchmark.questions.read(args)
    items = spread(items, getattr(args, "limit", None))
    folder = str(args.data_dir / benchmark.image_folder)
    check_items(items, folder)
    return items, folder


def spread(items: list[Item], limit: int | None) -> list[Item]:
    """``limit`` of the items, evenly spaced; all of them without a limit, or when there are fewer.

    Raises:
        ValueError: the limit is not positive.
    """
    if limit is None:
        return items
    if limit < 1:
        raise ValueError(f"--limit must be positive, got {limit}")
    count = min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def settings_digest(args: argparse.Namespace) -> str:
    """A digest of all that the results depend on, wherever they are written."""
    shared = {key: value for key, value in vars(args).items() if key != "output"}
    return run_settings(argparse.Namespace(**shared))


def method_of(args: argparse.Namespace, policy: Policy) -> dict[str, str]:
    """The exit method that runs, in the words of result records."""
    if isinstance(policy, NoExit):
        return {"method": "none"}
    if isinstance(policy, FixedExit):
        return {"method": "fixed", "exit_layer": str(policy.layer)}
    if isinstance(policy, LearnedExit):
        gates = args.gates or args.model_path
        return {"method": "dyvte", "gates": gates, "threshold": f"{policy.threshold:g}"}
    return {"method": args.method, "method_config": " ".join(args.method_config or [])}


def provenance(args: argparse.Namespace, module: str, model) -> dict[str, Any]:
    """Where a study's numbers come from: the loaded model, benchmark, data, code, machine."""
    commit, dirty = git_state()
    return {
        "model": args.model_path,
        "benchmark": args.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "conv_mode": args.conv_mode,
        "batch_size": args.batch_size,
        "commit": commit,
        "dirty": dirty,
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware(),
        "data_sha256": sha256_of([Path(args.question_file)], args.data_dir),
    }
