"""Turn answers into the task files of MME's official script. As in LLaVA, in the folder playground/data/eval/MME:

python convert_answer_to_mme.py --experiment NAME

reads answers/NAME.jsonl and writes eval_tool/answers/NAME/<task>.txt; flags name other places.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dyvte.benchmarks.files import read_answers_and_remarks, split_error
from dyvte.benchmarks.mme import RELEASE, read_ground_truth, replies_by_task, write_task_files
from dyvte.cli import run


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Convert answers for MME's official script.")
    parser.add_argument("--experiment", help="name of the answers, when no flags name both files")
    parser.add_argument("--data-dir", type=Path, default=Path(), help=f"folder of {RELEASE} (default: here)")
    parser.add_argument(
        "--answers-file", type=Path, help="default: answers/EXPERIMENT.jsonl in the data folder"
    )
    parser.add_argument(
        "--results_dir",
        "--results-dir",
        type=Path,
        help="default: eval_tool/answers/EXPERIMENT in the data folder",
    )
    return parser


def convert(options: argparse.Namespace) -> None:
    """Write the task files; say which answers found no place.

    Raises:
        FileNotFoundError, ValueError: a file is missing or broken, or no answer belongs to MME.
    """
    answers_file = options.answers_file or options.data_dir / f"answers/{options.experiment}.jsonl"
    results_dir = options.results_dir or options.data_dir / f"eval_tool/answers/{options.experiment}"
    truths = read_ground_truth(options.data_dir / RELEASE)
    answers, remarks = read_answers_and_remarks(answers_file, "prompt")
    replies, skipped = replies_by_task(answers, truths)
    if not replies:
        raise split_error(answers_file, options.data_dir / RELEASE)
    write_task_files(replies, results_dir)
    for remark in (*remarks, *skipped):
        print(f"{remark.question_id}: {remark.what}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser()

    def action(options: argparse.Namespace) -> None:
        if not options.experiment and not (options.answers_file and options.results_dir):
            parser.error("give --experiment, or both --answers-file and --results_dir")
        convert(options)

    run(parser, action, arguments)


if __name__ == "__main__":
    main()
