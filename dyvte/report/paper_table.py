"""Table 1 or 2 of the paper from result records: our value, the paper's, and the difference.

    python -m dyvte.report.paper_table table1 RECORDS... --out DIR

Writes ``table1.md`` and ``table1.tex`` (the paper's form: models in rows, benchmarks in columns), ``table1.csv`` (one
line for each row and benchmark, unrounded, with the records that the numbers come from) and ``table1.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dyvte.report.paper import AVERAGE, COLUMNS, HAS_AVERAGE, TITLES, row_of, shown_model
from dyvte.report.tables import Column, Entry, Located, Table, by_benchmark, in_order, table_command
from dyvte.report.titles import BASELINE, flops_unit, label_of

METHODS = (BASELINE, "dyvte")


def table_of(name: str, records: Sequence[Located]) -> Table:
    """Scores and TFLOPs of every model, the baseline first, then DyVTE; averages of rows that are complete.

    Raises:
        ValueError: none of the records belongs into the table, or two of them to one place.
    """
    headings = COLUMNS[name]
    columns = list(headings.values())
    models = list(dict.fromkeys(record.model for _, record in records))
    chosen = [pair for pair in records if pair[1].benchmark in headings and pair[1].method in METHODS]
    chosen.sort(key=lambda pair: (models.index(pair[1].model), pair[1].method != BASELINE))
    entries = [
        Entry(
            row=(shown_model(record.model), label_of(record)),
            names={"table": name, "model": record.model, "method": label_of(record)},
            benchmark=headings[record.benchmark],
            values={"score": record.score, "tflops": record.tflops},
            paper_row=row_of(record.model, record.method),
            sources=(str(path),),
            commit=record.commit,
        )
        for path, record in chosen
    ]
    if not entries:
        raise ValueError(f"None of the records belongs into {name}: it needs {', '.join(headings)}.")
    factor, unit = flops_unit(record.tflops for _, record in chosen)
    measures = Column("score", "Score", "{:.1f}"), Column("tflops", unit, "{:.3g}", factor=factor)
    averaged, average = (columns, [AVERAGE]) if HAS_AVERAGE[name] else ([], [])
    return Table(
        name,
        TITLES[name],
        ("Model", "Method"),
        by_benchmark([*columns, *average], *measures),
        in_order(entries, columns, averaged, printed=name),
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.paper_table",
        description="Tables 1 and 2 of the paper from result records.",
    )
    parser.add_argument("table", choices=list(COLUMNS))
    table_command(parser, lambda options, records: table_of(options.table, records), argv)


if __name__ == "__main__":
    main()
