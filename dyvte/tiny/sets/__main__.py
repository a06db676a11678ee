"""Write evaluation sets: python -m dyvte.tiny.sets --out DIR."""

from __future__ import annotations

import argparse
from pathlib import Path

from dyvte.cli import run
from dyvte.tiny.sets import SETS


def positive(text: str) -> int:
    """A number of questions."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def write_sets(args: argparse.Namespace) -> None:
    """Write the sets that are asked for."""
    for name in dict.fromkeys(args.only):
        folder, write = SETS[name]
        write(args.out / folder, args.heldout if name == "heldout" else args.questions)
        print(f"{name} written to {args.out / folder}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dyvte.tiny.sets", description="Write evaluation sets.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=positive, default=400, help="of each benchmark, about")
    parser.add_argument("--heldout", type=positive, default=100, help="held-out questions of each kind")
    parser.add_argument(
        "--only", nargs="+", choices=SETS, default=list(SETS), metavar="NAME", help=", ".join(SETS)
    )
    run(parser, write_sets)


if __name__ == "__main__":
    main()
