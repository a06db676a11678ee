"""Table 1 or 2 of the paper from result records: our value, the paper's, and the difference.

    python -m dyvte.report.paper_table table1 RECORDS... --out DIR

Writes ``table1.md`` and ``table1.tex`` (the paper's form: models in rows, benchmarks in columns), ``table1.csv`` (one
line for each row and benchmark, unrounded, with the records that the numbers come from) and ``table1.json``, which
:mod:`dyvte.report.page` reads. Run by :mod:`dyvte.reproduce`.
"""

from __future__ import annotations

from collections.abc import Sequence

from dyvte.report.paper import COLUMNS, row_of
from dyvte.report.tables import Column, Entry, Located, Table, make_table, table_command
from dyvte.report.titles import BASELINE, flops_unit, label_of


def table_of(name: str, records: Sequence[Located]) -> Table:
    """Scores and TFLOPs of every model, the baseline first, then DyVTE; averages of rows that are complete.

    Raises:
        ValueError: none of the records belongs into the table, or two of them to one place.
    """
    headings = COLUMNS[name]
    models = [record.model for _, record in records]
    chosen = [
        pair for pair in records if pair[1].benchmark in headings and pair[1].method in (BASELINE, "dyvte")
    ]
    if not chosen:
        raise ValueError(f"None of the records belongs into {name}: it needs {', '.join(headings)}.")
    chosen.sort(key=lambda pair: (models.index(pair[1].model), pair[1].method != BASELINE))
    entries = [
        Entry(
            label=label_of(record),
            names={"table": name, "model": record.model, "method": label_of(record)},
            benchmark=headings[record.benchmark],
            values={"score": record.score, "tflops": record.tflops},
            paper_row=row_of(record.model, record.method),
            sources=(str(path),),
            commit=record.commit,
        )
        for path, record in chosen
    ]
    factor, unit = flops_unit(record.tflops for _, record in chosen)
    columns = Column("score", "Score", "{:.1f}"), Column("tflops", unit, "{:.3g}", factor=factor)
    benchmarks = list(headings.values())
    averaged = benchmarks if name == "table2" else []
    return make_table(name, "Method", entries, benchmarks, columns, averaged=averaged)


def main(argv: Sequence[str] | None = None) -> None:
    description = "Tables 1 and 2 of the paper from result records."
    table_command("paper_table", description, table_of, argv, table=COLUMNS)


if __name__ == "__main__":
    main()
