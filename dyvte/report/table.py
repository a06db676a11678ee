"""All methods on all benchmarks from result records, with the differences from the baseline in percent.

python -m dyvte.report.table RECORDS... [--markdown | --latex | --csv] [--fixed] [--output FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dyvte import cli
from dyvte.io import write_whole
from dyvte.report.compare import MethodResult, benchmarks_of, results_of
from dyvte.report.record import add_records, read_records
from dyvte.report.tables import Column, Entry, Table, to_csv, to_latex, to_markdown
from dyvte.report.titles import AVERAGE, BASELINE, average_title, averaged, flops_unit, title_of

COSTS = ("tflops", "decoder_tflops", "seconds")


def select(results: Sequence[MethodResult], with_fixed: bool) -> list[MethodResult]:
    """Results in the order of a table: by benchmark, the average at the end; baseline first, DyVTE last."""
    benchmarks = benchmarks_of(results)
    if len(averaged(benchmarks)) > 1:  # the average of one benchmark says nothing new
        benchmarks.append(AVERAGE)
    order = {BASELINE: 0, "fixed": 1, "dyvte": 3}
    chosen = [r for r in results if r.benchmark in benchmarks and (with_fixed or r.method != "fixed")]
    return sorted(chosen, key=lambda r: (benchmarks.index(r.benchmark), order.get(r.method, 2), r.exit_layer))


def table_of(results: Sequence[MethodResult], with_fixed: bool = False) -> Table:
    """One row for each benchmark and method."""
    results = select(results, with_fixed)
    baselines = {result.benchmark: result for result in results if result.method == BASELINE}
    factor, unit = flops_unit(result.tflops for result in results)
    percent = "{percent:+.1f}%"
    columns = (
        Column("score", "Score", "{:.2f}", percent),
        Column("tflops", unit, "{:.3g}", percent, factor=factor),
        Column("decoder_tflops", f"Decoder {unit}", "{:.3g}", percent, factor=factor),
        Column("exit_layer", "Exit layer", "{:.2f}", ""),
        Column("seconds", "Seconds per sample", "{:.3g}", percent),
    )
    average, entries = average_title(benchmarks_of(results)), []
    for result in results:
        base = None if result.method == BASELINE else baselines.get(result.benchmark)
        references = {name: getattr(base, name) for name in ("score", *COSTS) if getattr(base, name, 0)}
        entries.append(
            Entry(
                row=(average if result.benchmark == AVERAGE else title_of(result.benchmark), result.label),
                names={"benchmark": result.benchmark, "label": result.label},
                values={column.measure: getattr(result, column.measure) for column in columns},
                references=references,
            )
        )
    return Table("table", "Methods", ("Benchmark", "Method"), columns, tuple(entries))


def text_of(results: Sequence[MethodResult], style: str, with_fixed: bool = False) -> str:
    """The table as ``markdown`` or ``latex``, or its unrounded numbers as ``csv``."""
    if style == "csv":
        return to_csv(asdict(result) for result in select(results, with_fixed))
    return {"markdown": to_markdown, "latex": to_latex}[style](table_of(results, with_fixed).texts())


def show(options: argparse.Namespace) -> None:
    """Write or print the table."""
    text = text_of(results_of(read_records(options.records)), options.style, options.fixed)
    if options.output:
        write_whole(options.output, text)
    else:
        print(text, end="")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.table", description="Tables from result records."
    )
    add_records(parser)
    style = parser.add_mutually_exclusive_group()
    for name in ("markdown", "latex", "csv"):
        style.add_argument(f"--{name}", dest="style", action="store_const", const=name, default="markdown")
    parser.add_argument("--fixed", action="store_true", help="show fixed exit layers too")
    parser.add_argument("--output", type=Path, help="write here instead of to the screen")
    cli.run(parser, show, argv)


if __name__ == "__main__":
    main()
