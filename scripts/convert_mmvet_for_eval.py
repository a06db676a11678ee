"""Turn merged MM-Vet answers into the file that MM-Vet's evaluator and its server take:

python scripts/convert_mmvet_for_eval.py --src answers/merge.jsonl --dst results/llava-v1.5-7b.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dyvte.benchmarks.mmvet import read_predictions
from dyvte.cli import run
from dyvte.io import write_json


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Convert answers for MM-Vet's evaluator.")
    parser.add_argument("--src", type=Path, required=True, help="answers in LLaVA's JSON lines")
    parser.add_argument("--dst", type=Path, required=True, help="predictions file to write")
    run(
        parser,
        lambda options: write_json(options.dst, read_predictions(options.src).texts, indent=2),
        arguments,
    )


if __name__ == "__main__":
    main()
