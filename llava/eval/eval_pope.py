"""python -m llava.eval.eval_pope --annotation-dir FOLDER --question-file FILE --result-file FILE"""

from __future__ import annotations

import argparse

from dyvte.benchmarks.files import read_answers, read_json_lines
from dyvte.benchmarks.pope import SplitScore, read_labels, score_splits


def report(result: SplitScore) -> str:
    """The figures of one split, in LLaVA's wording and order."""
    counts = (result.true_positive, result.false_positive, result.true_negative, result.false_negative)
    figures = (result.f1, result.accuracy, result.precision, result.recall, result.yes_ratio)
    return "\n".join(
        [
            "TP\tFP\tTN\tFN\t",
            "\t".join(str(count) for count in counts),
            f"Accuracy: {result.accuracy}",
            f"Precision: {result.precision}",
            f"Recall: {result.recall}",
            f"F1 score: {result.f1}",
            f"Yes ratio: {result.yes_ratio}",
            ", ".join(f"{figure:.3f}" for figure in figures),
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llava.eval.eval_pope", description="Score POPE answers.")
    parser.add_argument("--annotation-dir", required=True, help="folder of coco_pope_*.json")
    parser.add_argument("--question-file", required=True)
    parser.add_argument("--result-file", required=True)
    options = parser.parse_args(arguments)

    rows = read_json_lines(options.question_file, ("question_id", "category"))
    categories = {row["question_id"]: row["category"] for row in rows}
    splits, _ = score_splits(
        read_labels(options.annotation_dir), categories, read_answers(options.result_file)
    )
    for name, result in splits.items():
        print(f"Category: {name}, # samples: {result.total}")
        print(report(result))
        print("====================================")


if __name__ == "__main__":
    main()
