"""python -m dyvte.benchmarks list | check | run | score

``scripts/v1_5/eval/common.sh`` relies on ``check NAME --data-dir DIR --quiet``: exit code 0 and no output when the
benchmark is ready, else exit code 1 and the reasons.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path

from dyvte.benchmarks import BENCHMARKS, get_benchmark
from dyvte.benchmarks.benchmark import describe
from dyvte.benchmarks.check import check, ready
from dyvte.cli import one_line_errors
from dyvte.io import write_json

DATA_ROOT = Path("playground/data/eval")
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts/v1_5/eval"
RUN_SETTINGS = (
    "method", "method_config", "gates", "threshold", "exit_layer", "conv_mode", "out", "batch_size", "chunks",
    "variant", "verify_every",
)  # fmt: skip
"""Flags of ``run``; in upper case they are environment variables that scripts/v1_5/eval/common.sh documents."""


def list_benchmarks(options: argparse.Namespace) -> None:
    """Print name, title, folder, metric and scoring variants of each."""
    rows = [("name", "benchmark", f"folder in {DATA_ROOT}", "score", "variants (first: default)")]
    for benchmark in BENCHMARKS.values():
        variants = ", ".join(benchmark.variants) or "-"
        rows.append((benchmark.name, benchmark.title, benchmark.folder, benchmark.metric, variants))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def check_benchmarks(options: argparse.Namespace) -> None:
    """Print what is there and what is not; exit with code 1 when a benchmark is not ready."""
    if options.data_dir and len(options.names) != 1:
        raise ValueError("--data-dir is the folder of one benchmark: name that one.")
    incomplete = False
    for name in options.names or BENCHMARKS:
        benchmark = get_benchmark(name)
        findings = check(benchmark, options.data_dir or options.data_root / benchmark.folder)
        complete = ready(findings)
        incomplete |= not complete
        if options.quiet and complete:
            continue
        print(f"{benchmark.title}: {'ready' if complete else 'not ready'}")
        for finding in findings:
            print(f"  {finding.state:8} {finding.path}")
            if finding.detail:
                print(f"           {finding.detail}")
    if incomplete:
        sys.exit(1)


def run_benchmark(options: argparse.Namespace) -> None:
    """Replace this process by the benchmark's script (exec); flags become its environment variables."""
    script = SCRIPTS / f"{options.name}.sh"
    if not script.is_file():
        raise FileNotFoundError(
            "python -m dyvte.benchmarks run needs a checkout of the repository, installed with pip install -e: "
            f"{script} does not exist"
        )
    settings = {name.upper(): getattr(options, name) for name in RUN_SETTINGS}
    settings |= {"MODEL": options.model_path, "DATA": options.data_dir, "PYTHON": sys.executable}
    environment = {key: str(value) for key, value in settings.items() if value is not None}
    os.execvpe("bash", ["bash", str(script), *options.arguments], {**os.environ, **environment})  # noqa: S606, S607


def score_benchmark(options: argparse.Namespace) -> None:
    """Print the official lines and the remarks on answers; with ``--json`` write all figures."""
    benchmark = get_benchmark(options.name)
    result = benchmark.score(options.data_dir, options.answers, benchmark.variant(options.variant))
    print(describe(benchmark.title, result))
    if options.json:
        write_json(options.json, {**asdict(result), "skipped": result.skipped})


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dyvte.benchmarks", description="The nine benchmarks.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("list", help="names, folders, metrics and scoring variants")
    command.set_defaults(action=list_benchmarks)

    command = commands.add_parser("check", help="what is there, what is missing, and where to get it")
    command.add_argument("names", nargs="*", metavar="NAME", help=f"default: all ({', '.join(BENCHMARKS)})")
    command.add_argument(
        "--data-root", type=Path, default=DATA_ROOT, help=f"folder of all (default: {DATA_ROOT})"
    )
    command.add_argument("--data-dir", type=Path, help="folder of the one benchmark named")
    command.add_argument("--quiet", action="store_true", help="say only what is not ready")
    command.set_defaults(action=check_benchmarks)

    command = commands.add_parser(
        "run",
        help="answer and score: scripts/v1_5/eval/NAME.sh with flags for settings",
        epilog="Arguments after -- go to the command line that answers the questions.",
    )
    command.add_argument("name", choices=list(BENCHMARKS))
    command.add_argument("--model-path", required=True)
    command.add_argument("--data-dir", type=Path)
    for name in RUN_SETTINGS:
        command.add_argument(f"--{name.replace('_', '-')}", help=f"{name.upper()} of the script")
    command.set_defaults(action=run_benchmark)

    command = commands.add_parser("score", help="score an answers file")
    command.add_argument("name", choices=list(BENCHMARKS))
    command.add_argument("--data-dir", type=Path, required=True, help="the benchmark's folder")
    command.add_argument("--answers", type=Path, required=True, help="answers in LLaVA's JSON lines")
    command.add_argument("--variant", default="", help="scoring variant (see list)")
    command.add_argument("--json", type=Path, help="write all figures and the score of each question here")
    command.set_defaults(action=score_benchmark)
    return parser


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = build_parser().parse_args(arguments[:end], argparse.Namespace(arguments=arguments[end + 1 :]))
    with one_line_errors("python -m dyvte.benchmarks"):
        options.action(options)


if __name__ == "__main__":
    main()
