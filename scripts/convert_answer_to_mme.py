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
    parser = argparse.ArgumentParser(description="Convert answers for MME's official script.")
    add = parser.add_argument
    add("--experiment", help="name of the answers, when no flags name both files")
    add("--data-dir", type=Path, default=Path(), help=f"folder of {RELEASE} (default: here)")
    add("--answers-file", type=Path, help="default: answers/EXPERIMENT.jsonl in the data folder")
    places = "default: eval_tool/answers/EXPERIMENT in the data folder"
    add("--results_dir", "--results-dir", type=Path, help=places)
    options = parser.parse_args(arguments)
    if not options.experiment and not (options.answers_file and options.results_dir):
        parser.error("give --experiment, or both --answers-file and --results_dir")
    run(parser, convert, arguments)


if __name__ == "__main__":
    main()
