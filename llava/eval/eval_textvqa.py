"""python -m llava.eval.eval_textvqa --annotation-file FILE (--result-file FILE | --result-dir FOLDER)

As in LLaVA, the mean goes over the lines of the result file, however many there are.
``python -m dyvte.benchmarks score textvqa`` insists on a complete file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dyvte.benchmarks.files import read_answers
from dyvte.benchmarks.textvqa import read_annotations, score_answers


def eval_single(annotation_file: str | Path, result_file: str | Path) -> float:
    """Print LLaVA's lines for one result file and return the accuracy in percent."""
    answers = read_answers(result_file, ("question_id", "prompt", "text"))
    result = score_answers(read_annotations(annotation_file), answers)
    print(Path(result_file).stem)
    print(f"Samples: {len(result.questions)}\nAccuracy: {result.value:.2f}%\n")
    return result.value


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.eval_textvqa", description="Score TextVQA answers."
    )
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file")
    parser.add_argument("--result-dir")
    options = parser.parse_args(arguments)
    if not options.result_file and not options.result_dir:
        parser.error("name a --result-file or a --result-dir")

    files = [Path(options.result_file)] if options.result_file else []
    if options.result_dir:
        files += sorted(Path(options.result_dir).glob("*.jsonl"))
    for file in files:
        eval_single(options.annotation_file, file)


if __name__ == "__main__":
    main()
