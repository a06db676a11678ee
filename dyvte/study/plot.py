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

KINDS = ("attention", "entropy", "manual", "examples")


def draw(options: argparse.Namespace) -> list[Path]:
    """Make the figure that the options ask for; returns the files.

    Raises:
        FileNotFoundError, ValueError: numbers are missing or of another study.
    """
    if options.kind == "examples":
        if len(options.files) != 1:
            raise ValueError("A page of examples is made from one study.")
        return [write_page(options.files[0], options.out)]
    if options.kind in ("attention", "entropy"):
        studies = [AttentionStudy.read(path) for path in options.files]
        if options.kind == "entropy":
            return save(entropy_figure(studies), options.out)
        return save(attention_figure(studies, options.measure), options.out)
    records = read_records(options.files)
    oracles = [OracleStudy.read(path) for path in options.oracle]
    return save(manual_exit_figure(records, oracles), options.out)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dyvte.study.plot", description="Figures of the studies.")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        help="attention, entropy, examples: folders (or files) of studies; manual: records or their folders",
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--measure", choices=["mass", "weight"], default="mass", help="of attention")
    parser.add_argument(
        "--oracle", nargs="*", type=Path, default=[], help="manual: studies of the oracle exit"
    )

    def action(args: argparse.Namespace) -> None:
        for file in draw(args):
            print(file)

    run(parser, action, arguments)


if __name__ == "__main__":
    main()
