"""Table 1 or 2 of the paper from result records: our value, the paper's, and the difference.

    python -m dyvte.report.paper_table table1 RECORDS... --out DIR

Writes ``table1.md`` and ``table1.tex`` (the paper's form: models in rows, benchmarks in columns), ``table1.csv`` (one
line for each row and benchmark, unrounded, with the records that the numbers come from) and ``table1.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from dyvte.report.paper import AVERAGE, COLUMNS, HAS_AVERAGE, TITLES, row_of, shown_model, values_of
from dyvte.report.tables import Column, Entry, Located, Table, in_order, table_command
from dyvte.report.titles import BASELINE, flops_unit, label_of

METHODS = (BASELINE, "dyvte")


def table_of(name: str, records: Sequence[Located]) -> Table:
    """Scores and TFLOPs of every model, the baseline first, then DyVTE; averages of rows that are complete.

    Raises:
        ValueError: none of the records belongs into the table, or two of them to one place.
    """
    headings = COLUMNS[name]
    models = list(dict.fromkeys(record.model for _, record in records))
    records = sorted(records, key=lambda pair: (models.index(pair[1].model), pair[1].method != BASELINE))
    methods = {label_of(record): record.method for _, record in records}

    def with_paper(entry: Entry) -> Entry:
        row = row_of(entry.names["model"], methods[entry.names["method"]])
        return replace(entry, references=values_of(name, row, entry.benchmark))

    entries = [
        Entry(
            row=(shown_model(record.model), label_of(record)),
            names={"table": name, "model": record.model, "method": label_of(record)},
            benchmark=headings[record.benchmark],
            values={"score": record.score, "tflops": record.tflops},
            sources=(str(path),),
            commit=record.commit,
        )
        for path, record in records
        if record.benchmark in headings and record.method in METHODS
    ]
    if not entries:
        raise ValueError(f"None of the records belongs into {name}: it needs {', '.join(headings)}.")
    factor, unit = flops_unit(entry.values["tflops"] or 0.0 for entry in entries)
    columns = list(headings.values())
    return Table(
        name,
        TITLES[name],
        ("Model", "Method"),
        tuple(
            column
            for benchmark in (*columns, *([AVERAGE] if HAS_AVERAGE[name] else []))
            for column in (
                Column("score", "Score", "{:.1f}", benchmark=benchmark),
                Column("tflops", unit, "{:.3g}", benchmark=benchmark, factor=factor),
            )
        ),
        in_order(entries, columns, columns if HAS_AVERAGE[name] else [], with_paper),
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
