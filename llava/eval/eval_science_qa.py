"""python -m llava.eval.eval_science_qa --base-dir DIR --result-file FILE --output-file FILE --output-result FILE

``--output-file`` gets what was made of each answer, right ones and wrong ones apart; ``--output-result`` the accuracy
and the index chosen for each question.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dyvte.benchmarks.sqa import OPTIONS, score_file
from dyvte.cli import run
from dyvte.io import check_output, write_whole


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.eval_science_qa", description="Score ScienceQA answers."
    )
    parser.add_argument("--base-dir", type=Path, required=True, help="folder of problems.json")
    parser.add_argument("--result-file", type=Path, required=True, help="answers in LLaVA's JSON lines")
    parser.add_argument("--output-file", type=Path, required=True)
    parser.add_argument("--output-result", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--options", type=list, default=list(OPTIONS), help="letters in one word: ABCDE")
    return parser


def score(args: argparse.Namespace) -> None:
    """Write both files and print the official lines."""
    for output, flag in ((args.output_file, "--output-file"), (args.output_result, "--output-result")):
        check_output(output, args.result_file, f"{flag} and --result-file")
    score, outcomes = score_file(args.base_dir, args.result_file, args.split, args.options)
    analyses: dict[str, list[dict[str, Any]]] = {"correct": [], "incorrect": []}
    for outcome in outcomes:
        analysis = {
            "question_id": outcome.problem_id,
            "parsed_ans": outcome.letter,
            "ground_truth": args.options[outcome.problem["answer"]],
            "question": outcome.prompt,
            "pred": outcome.text,
            "is_multimodal": outcome.has_image,
        }
        analyses["correct" if outcome.correct else "incorrect"].append(analysis)
    results = {
        "acc": score.parts["accuracy"],  # of all questions, in percent
        "correct": len(analyses["correct"]),
        "count": len(outcomes),
        "results": {outcome.problem_id: outcome.index for outcome in outcomes},
        "outputs": {outcome.problem_id: outcome.text for outcome in outcomes},
    }
    for path, content in ((args.output_file, analyses), (args.output_result, results)):
        write_whole(path, json.dumps(content, indent=2))
    print(score.report)
    if score.remarks:
        print(f"{len(score.remarks)} remarks on answers: see python -m dyvte.benchmarks score sqa --json")


def main(arguments: list[str] | None = None) -> None:
    run(build_parser(), score, arguments)


if __name__ == "__main__":
    main()
