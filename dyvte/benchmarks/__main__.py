"""python -m dyvte.benchmarks score NAME --data-dir DIR --answers FILE [--json OUT]"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from dyvte.benchmarks import BENCHMARKS, get_benchmark


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.benchmarks", description="Score answers of a benchmark."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("score", help="score an answers file")
    command.add_argument("name", choices=sorted(BENCHMARKS))
    command.add_argument("--data-dir", type=Path, required=True, help="the benchmark's folder")
    command.add_argument("--answers", type=Path, required=True, help="answers in LLaVA's JSON lines")
    command.add_argument("--json", type=Path, help="write all figures and the score of each question here")
    options = parser.parse_args(arguments)

    try:
        result = get_benchmark(options.name).score(options.data_dir, options.answers)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{options.name}: {result.value:.2f} ({result.metric}, {len(result.questions)} questions)")
    for name, value in result.parts.items():
        print(f"  {name}: {value:.2f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
