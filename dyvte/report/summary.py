"""Summary of a run of experiments: table, figures, verdict, and one results file.

    python -m dyvte.report.summary RECORDS... --out DIR [--setting KEY=VALUE ...]

Writes ``table.{md,tex,csv}``, ``exits.png``, ``tradeoff.png`` and ``results.json`` (the verdict, the settings
given here, and all records with their provenance), and prints the table, the verdict and the files' names.
Run by :mod:`dyvte.reproduce`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dyvte import cli
from dyvte.io import write_json, write_whole
from dyvte.report.compare import results_of, sentence_of, verdict
from dyvte.report.figures import exit_histograms, tradeoff
from dyvte.report.plotting import save
from dyvte.report.record import ResultRecord, read_records, records_parser
from dyvte.report.table import text_of


def summarize(records: Sequence[ResultRecord], out: Path, settings: dict[str, str]) -> str:
    """Write all files into ``out`` and return the text to show.

    Raises:
        ValueError: the records do not hold the baseline and DyVTE on the same benchmarks.
    """
    results = results_of(records)
    found = verdict(results)
    write_whole(out / "table.md", text_of(results, "markdown", with_fixed=True))
    write_whole(out / "table.tex", text_of(results, "latex"))
    write_whole(out / "table.csv", text_of(results, "csv", with_fixed=True))
    save(exit_histograms(records), out / "exits.png")
    save(tradeoff(records), out / "tradeoff.png")
    content = {"verdict": asdict(found), "settings": settings, "records": [*map(asdict, records)]}
    write_json(out / "results.json", content)
    return (
        f"{text_of(results, 'markdown')}\n{sentence_of(found)}\n\n"
        f"  table with every fixed exit layer: {out / 'table.md'}\n"
        f"  where samples exit: {out / 'exits.png'}\n"
        f"  score against cost: {out / 'tradeoff.png'}\n"
        f"  results and provenance: {out / 'results.json'}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = records_parser("dyvte.report.summary", "Sum up result records.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--setting", nargs="*", default=[], metavar="KEY=VALUE", help="kept in results.json")

    def action(options: argparse.Namespace) -> None:
        settings = dict(entry.split("=", 1) for entry in options.setting)
        print(summarize(read_records(options.records), options.out, settings))

    cli.run(parser, action, argv)


if __name__ == "__main__":
    main()
