"""python -m llava.eval.eval_textvqa --annotation-file FILE (--result-file FILE | --result-dir FOLDER)

As in LLaVA, the mean goes over the lines of the result file, however many there are;
``python -m dyvte.benchmarks score textvqa`` names the questions that are missing or answered twice.

Run by hand, as in LLaVA: flags and printed lines must stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dyvte.benchmarks.textvqa import score_file
from dyvte.cli import run


def eval_single(annotation_file: str | Path, result_file: str | Path) -> float:
    """Print LLaVA's lines for one result file and return the accuracy in percent; raises as ``score_file``."""
    result = score_file(Path(annotation_file), Path(result_file))
    print(result.report)
    return result.value


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llava.eval.eval_textvqa", description="Score TextVQA.")
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file")
    parser.add_argument("--result-dir")

    def score(options: argparse.Namespace) -> None:
        if not options.result_file and not options.result_dir:
            parser.error("name a --result-file or a --result-dir")
        if options.result_file:
            eval_single(options.annotation_file, options.result_file)
        for file in sorted(Path(options.result_dir).iterdir()) if options.result_dir else []:
            if file.suffix == ".jsonl":
                eval_single(options.annotation_file, file)
            else:
                print(f"Skipping {file.name}")

    run(parser, score, arguments)


if __name__ == "__main__":
    main()
