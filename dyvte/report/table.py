"""All methods on all benchmarks from result records, with the differences from the baseline in percent.

python -m dyvte.report.table RECORDS... [--markdown | --latex | --csv] [--fixed] [--output FILE]

:mod:`dyvte.report.summary` writes the same table with :func:`text_of`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dyvte import cli
from dyvte.io import write_whole
from dyvte.report.compare import MethodResult, benchmarks_of, results_of
from dyvte.report.record import read_records, records_parser
from dyvte.report.tables import to_csv, to_latex, to_markdown
from dyvte.report.titles import AVERAGE, BASELINE, average_title, averaged, flops_unit, title_of


def select(results: Sequence[MethodResult], with_fixed: bool) -> list[MethodResult]:
    """Results in the order of the table: by benchmark, the average last; within each, baseline first, DyVTE last."""
    benchmarks = benchmarks_of(results)
    if len(averaged(benchmarks)) > 1:  # the average of one benchmark says nothing new
        benchmarks.append(AVERAGE)
    order = {BASELINE: 0, "fixed": 1, "dyvte": 3}
    chosen = [r for r in results if r.benchmark in benchmarks and (with_fixed or r.method != "fixed")]
    return sorted(chosen, key=lambda r: (benchmarks.index(r.benchmark), order.get(r.method, 2), r.exit_layer))


def rows_of(results: Sequence[MethodResult], with_fixed: bool = False) -> list[list[str]]:
    """Header and one row for each benchmark and method, as text."""
    chosen, average = select(results, with_fixed), average_title(benchmarks_of(results))
    baselines = {result.benchmark: result for result in chosen if result.method == BASELINE}
    factor, unit = flops_unit(result.tflops for result in chosen)
    columns = {
        "score": ("Score", "{:.2f}", 1),
        "tflops": (unit, "{:.3g}", factor),
        "decoder_tflops": (f"Decoder {unit}", "{:.3g}", factor),
        "exit_layer": ("Exit layer", "{:.2f}", 1),
        "seconds": ("Seconds per sample", "{:.3g}", 1),
    }
    rows = [["Benchmark", "Method", *(heading for heading, _, _ in columns.values())]]
    for result in chosen:
        row = [average if result.benchmark == AVERAGE else title_of(result.benchmark), result.label]
        base = None if result.method == BASELINE else baselines.get(result.benchmark)
        for name, (_, form, scale) in columns.items():
            value, reference = getattr(result, name), getattr(base, name, 0)
            compares = reference and name != "exit_layer"
            percent = f" ({100 * (value / reference - 1):+.1f}%)" if compares else ""
            row.append(form.format(scale * value) + percent)
        rows.append(row)
    return rows


def text_of(results: Sequence[MethodResult], style: str, with_fixed: bool = False) -> str:
    """The table as ``markdown`` or ``latex``, or its unrounded numbers as ``csv``."""
    if style == "csv":
        return to_csv([asdict(result) for result in select(results, with_fixed)])
    return {"markdown": to_markdown, "latex": to_latex}[style](rows_of(results, with_fixed))


def main(argv: Sequence[str] | None = None) -> None:
    parser = records_parser("dyvte.report.table", "Tables from result records.")
    style = parser.add_mutually_exclusive_group()
    for name in ("markdown", "latex", "csv"):
        style.add_argument(f"--{name}", dest="style", action="store_const", const=name, default="markdown")
    parser.add_argument("--fixed", action="store_true", help="show fixed exit layers too")
    parser.add_argument("--output", type=Path, help="write here instead of to the screen")

    def action(options: argparse.Namespace) -> None:
        text = text_of(results_of(read_records(options.records)), options.style, options.fixed)
        if options.output:
            write_whole(options.output, text)
        else:
            print(text, end="")

    cli.run(parser, action, argv)


if __name__ == "__main__":
    main()
