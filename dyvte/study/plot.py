"""Figures of the studies from stored numbers alone; the same numbers give the same bytes.

python -m dyvte.study.plot attention STUDIES... --out figure3 [--measure mass|weight]
python -m dyvte.study.plot entropy STUDIES... --out figure5
python -m dyvte.study.plot manual RECORDS... [--oracle STUDIES...] --out figure4
python -m dyvte.study.plot examples STUDY --out figure7.html

A name without ending is written as PNG and as PDF.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dyvte.cli import run
from dyvte.report.examples_page import write_page
from dyvte.report.plotting import save
from dyvte.report.record import read_records
from dyvte.study.attention import AttentionStudy
from dyvte.study.attention_figures import attention_figure, entropy_figure
from dyvte.study.exit_figures import manual_exit_figure
from dyvte.study.oracle import OracleStudy


def draw(options: argparse.Namespace) -> None:
    """Make the figure that the options ask for; print the files.

    Raises:
        FileNotFoundError, ValueError: numbers are missing or of another study.
    """
    if options.kind == "examples":
        if len(options.files) != 1:
            raise ValueError("A page of examples is made from one study.")
        print(write_page(options.files[0], options.out))
        return
    if options.kind == "manual":
        oracles = [OracleStudy.read(path) for path in options.oracle]
        figure = manual_exit_figure(read_records(options.files), oracles)
    else:
        studies = [AttentionStudy.read(path) for path in options.files]
        entropy = options.kind == "entropy"
        figure = entropy_figure(studies) if entropy else attention_figure(studies, options.measure)
    print(*save(figure, options.out), sep="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dyvte.study.plot", description="Figures of the studies.")
    parser.add_argument("kind", choices=("attention", "entropy", "manual", "examples"))
    files = "attention, entropy, examples: folders (or files) of studies; manual: records or their folders"
    parser.add_argument("files", nargs="+", type=Path, help=files)
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--measure", choices=["mass", "weight"], default="mass", help="of attention")
    oracle = "manual: studies of the oracle exit"
    parser.add_argument("--oracle", nargs="*", type=Path, default=[], help=oracle)
    run(parser, draw, arguments)


if __name__ == "__main__":
    main()
