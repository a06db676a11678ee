"""Turn merged MM-Vet answers into the file that MM-Vet's evaluator and its server take:

python scripts/convert_mmvet_for_eval.py --src answers/merge.jsonl --dst results/llava-v1.5-7b.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dyvte.benchmarks.mmvet import read_predictions
from dyvte.cli import run
from dyvte.io import write_whole


def convert(options: argparse.Namespace) -> None:
    write_whole(options.dst, json.dumps(read_predictions(options.src).texts, indent=2))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Convert answers for MM-Vet's evaluator.")
    parser.add_argument("--src", type=Path, required=True, help="answers in LLaVA's JSON lines")
    parser.add_argument("--dst", type=Path, required=True, help="predictions file to write")
    run(parser, convert, arguments)


if __name__ == "__main__":
    main()
