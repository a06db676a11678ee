"""Write evaluation sets: python -m dyvte.tiny.sets --out DIR."""

from __future__ import annotations

import argparse
from pathlib import Path

from dyvte.tiny.sets import SETS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dyvte.tiny.sets", description="Write evaluation sets.")
    parser.add_argument("--out", required=True)
    parser.add_argument("--questions", type=int, default=400, help="of each benchmark, about")
    parser.add_argument("--heldout", type=int, default=100, help="questions of each kind")
    parser.add_argument(
        "--only", nargs="+", choices=SETS, default=list(SETS), metavar="NAME", help=", ".join(SETS)
    )
    arguments = parser.parse_args()
    for option in ("questions", "heldout"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option} must be at least 1")
    for name in dict.fromkeys(arguments.only):
        folder, write = SETS[name]
        write(Path(arguments.out) / folder, arguments.heldout if name == "heldout" else arguments.questions)
        print(f"{name} written to {Path(arguments.out) / folder}", flush=True)


if __name__ == "__main__":
    main()
