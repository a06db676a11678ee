"""python -m llava.eval.eval_pope --annotation-dir FOLDER --question-file FILE --result-file FILE

As in LLaVA, answers meet labels by position; ``python -m dyvte.benchmarks score pope`` names the answers that this
shifts, and can pair by id.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dyvte.benchmarks.pope import report_of, score_files
from dyvte.cli import run


def score(options: argparse.Namespace) -> None:
    outcome = score_files(options.annotation_dir, options.question_file, options.result_file, "position")
    print(report_of(outcome.splits), end="")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llava.eval.eval_pope", description="Score POPE answers.")
    parser.add_argument("--annotation-dir", type=Path, required=True, help="folder of coco_pope_*.json")
    parser.add_argument("--question-file", type=Path, required=True)
    parser.add_argument("--result-file", type=Path, required=True)
    run(parser, score, arguments)


if __name__ == "__main__":
    main()
