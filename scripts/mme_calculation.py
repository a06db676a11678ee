"""The points of MME from task files, as MME's eval_tool/calculation.py prints them:

python scripts/mme_calculation.py --results_dir eval_tool/answers/NAME
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dyvte.benchmarks.mme import report, score_task_files
from dyvte.cli import run


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Score the task files that convert_answer_to_mme.py wrote.")
    name = "--results_dir", "--results-dir"
    parser.add_argument(*name, type=Path, required=True, help="folder of <task>.txt")
    run(parser, lambda options: print(report(score_task_files(options.results_dir))), arguments)


if __name__ == "__main__":
    main()
