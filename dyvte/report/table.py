"""Tables 1 and 2 of the paper from result records, with the differences from the baseline in percent.

python -m dyvte.report.table RECORDS... [--markdown | --latex | --csv] [--fixed] [--output FILE]
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from dyvte.benchmarks import get_benchmark
from dyvte.report.compare import AVERAGE, BASELINE, Run, runs_of
from dyvte.report.record import read_records

Row = list[str]


def select(runs: Sequence[Run], with_fixed: bool) -> list[Run]:
    """Runs in the order of a table: by benchmark, the average at the end; baseline first, DyVTE last."""
    benchmarks = list(dict.fromkeys(run.benchmark for run in runs))
    if len(benchmarks) == 2:
        benchmarks.remove(AVERAGE)  # the average of one benchmark says nothing new
    order = {BASELINE: 0, "fixed": 1, "dyvte": 3}
    chosen = [run for run in runs if run.benchmark in benchmarks and (with_fixed or run.method != "fixed")]
    return sorted(
        chosen, key=lambda run: (benchmarks.index(run.benchmark), order.get(run.method, 2), run.exit_layer)
    )


def rows_of(runs: Sequence[Run], with_fixed: bool = False) -> list[Row]:
    """Header and rows of text cells; FLOPs in GFLOPs where a model is so small that TFLOPs would be all
    zeros.
    """
    runs = select(runs, with_fixed)
    factor, unit = (1000.0, "GFLOPs") if max(run.tflops for run in runs) < 0.1 else (1.0, "TFLOPs")
    baselines = {run.benchmark: run for run in runs if run.method == BASELINE}
    rows = [["Benchmark", "Method", "Score", unit, f"Decoder {unit}", "Exit layer", "Seconds per sample"]]
    for run in runs:
        base = None if run.method == BASELINE else baselines.get(run.benchmark)
        rows.append(
            [
                title_of(run.benchmark),
                run.label,
                f"{run.score:.2f}" + _change(run.score, base and base.score),
                f"{factor * run.tflops:.3g}" + _change(run.tflops, base and base.tflops),
                f"{factor * run.decoder_tflops:.3g}"
                + _change(run.decoder_tflops, base and base.decoder_tflops),
                f"{run.exit_layer:.2f}",
                f"{run.seconds:.3g}" + _change(run.seconds, base and base.seconds),
            ]
        )
    return rows


def title_of(benchmark: str) -> str:
    """A benchmark's name as papers write it."""
    return "Average" if benchmark == AVERAGE else get_benchmark(benchmark).title


def to_markdown(rows: list[Row]) -> str:
    """Aligned, so that it also reads well as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = ["-" * width if column < 2 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]]) + "\n"


def to_latex(rows: list[Row]) -> str:
    """A ``tabular`` for the booktabs package, with a rule between benchmarks."""
    header, *body = [[cell.replace("%", r"\%").replace("_", r"\_") for cell in row] for row in rows]
    lines = [r"\begin{tabular}{ll" + "r" * (len(header) - 2) + "}", r"\toprule", " & ".join(header) + r" \\"]
    previous = None
    for row in body:
        if row[0] != previous:
            lines.append(r"\midrule")
        previous = row[0]
        lines.append(" & ".join(row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(runs: Sequence[Run], with_fixed: bool = False) -> str:
    """Unrounded numbers, one line for each run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["benchmark", "method", "label", "score", "tflops", "decoder_tflops", "exit_layer", "seconds"]
    )
    for run in select(runs, with_fixed):
        numbers = (run.score, run.tflops, run.decoder_tflops, run.exit_layer, run.seconds)
        writer.writerow([run.benchmark, run.method, run.label, *numbers])
    return text.getvalue()


def _change(value: float, base: float | None) -> str:
    return f" ({100 * (value / base - 1):+.1f}%)" if base else ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.table", description="Tables from result records."
    )
    parser.add_argument(
        "records", nargs="+", type=Path, help="record files, or folders that hold record.json files"
    )
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--markdown", dest="style", action="store_const", const="markdown", default="markdown")
    style.add_argument("--latex", dest="style", action="store_const", const="latex")
    style.add_argument("--csv", dest="style", action="store_const", const="csv")
    parser.add_argument("--fixed", action="store_true", help="show fixed exit layers too")
    parser.add_argument("--output", type=Path, help="write here instead of to the screen")
    options = parser.parse_args(arguments)

    try:
        runs = runs_of(read_records(options.records))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    if options.style == "csv":
        text = to_csv(runs, options.fixed)
    else:
        text = {"markdown": to_markdown, "latex": to_latex}[options.style](rows_of(runs, options.fixed))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
