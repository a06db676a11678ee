"""Turn merged GQA answers into the predictions file of GQA's own eval.py:

python scripts/convert_gqa_for_eval.py --src answers/merge.jsonl --dst testdev_balanced_predictions.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dyvte.benchmarks.files import read_answers
from dyvte.benchmarks.gqa import prediction_of


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Convert answers for GQA's official scorer.")
    parser.add_argument("--src", type=Path, required=True, help="answers in LLaVA's JSON lines")
    parser.add_argument("--dst", type=Path, required=True, help="predictions file to write")
    options = parser.parse_args(arguments)

    try:
        answers = read_answers(options.src)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    predictions = [
        {"questionId": answer["question_id"], "prediction": prediction_of(answer["text"])}
        for answer in answers
    ]
    options.dst.write_text(json.dumps(predictions), encoding="utf-8")


if __name__ == "__main__":
    main()
