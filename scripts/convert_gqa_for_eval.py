"""Turn merged GQA answers into the predictions file of GQA's own eval.py:

python scripts/convert_gqa_for_eval.py --src answers/merge.jsonl --dst testdev_balanced_predictions.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dyvte.benchmarks.files import read_answers
from dyvte.benchmarks.gqa import prediction_of
from dyvte.cli import run
from dyvte.io import write_whole


def convert(options: argparse.Namespace) -> None:
    predictions = [
        {"questionId": answer["question_id"], "prediction": prediction_of(answer["text"])}
        for answer in read_answers(options.src)
    ]
    write_whole(options.dst, json.dumps(predictions))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Convert answers for GQA's official scorer.")
    parser.add_argument("--src", type=Path, required=True, help="answers in LLaVA's JSON lines")
    parser.add_argument("--dst", type=Path, required=True, help="predictions file to write")
    run(parser, convert, arguments)


if __name__ == "__main__":
    main()
