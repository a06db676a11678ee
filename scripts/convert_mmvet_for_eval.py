"""Turn merged MM-Vet answers into the file that MM-Vet's evaluator and its server take:

python scripts/convert_mmvet_for_eval.py --src answers/merge.jsonl --dst results/llava-v1.5-7b.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dyvte.benchmarks.mmvet import read_predictions


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Convert answers for MM-Vet's evaluator.")
    parser.add_argument("--src", type=Path, required=True, help="answers in LLaVA's JSON lines")
    parser.add_argument("--dst", type=Path, required=True, help="predictions file to write")
    options = parser.parse_args(arguments)

    try:
        predictions = read_predictions(options.src)
        options.dst.parent.mkdir(parents=True, exist_ok=True)
        options.dst.write_text(json.dumps(predictions.texts, indent=2), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
