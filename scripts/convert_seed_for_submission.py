"""Print SEED-Bench's accuracies and write the leaderboard's upload file, with LLaVA's flags:

python scripts/convert_seed_for_submission.py --annotation-file SEED-Bench.json \\
    --result-file answers/merge.jsonl --result-upload-file answers_upload/llava-v1.5-7b.jsonl
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dyvte.benchmarks.benchmark import REMARKS_SHOWN
from dyvte.benchmarks.seed import score_files, write_upload
from dyvte.cli import run


def convert(options: argparse.Namespace) -> None:
    """Write the upload file, and print accuracies and remarks."""
    score, annotations, texts = score_files(options.annotation_file, options.result_file)
    write_upload(annotations, texts, options.result_upload_file)
    for remark in score.remarks[:REMARKS_SHOWN]:
        print(f"{remark.question_id}: {remark.what}", file=sys.stderr)
    if len(score.remarks) > REMARKS_SHOWN:
        print(f"... and {len(score.remarks) - REMARKS_SHOWN} more remarks", file=sys.stderr)
    print(score.report)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Score SEED-Bench answers and write the upload file.")
    parser.add_argument("--annotation-file", type=Path, required=True, help="SEED-Bench.json")
    parser.add_argument("--result-file", type=Path, required=True, help="answers in LLaVA's JSON lines")
    parser.add_argument("--result-upload-file", type=Path, required=True, help="file to write")
    run(parser, convert, arguments)


if __name__ == "__main__":
    main()
