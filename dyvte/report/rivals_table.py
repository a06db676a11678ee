"""Table 4 of the paper and beyond: every method on the chosen benchmarks, with its costs, from result records.

    python -m dyvte.report.rivals_table RECORDS... --out DIR

Writes ``table4.md`` and ``table4.tex`` (methods in rows; score and FLOPs on each benchmark and on average, KV bytes
and seconds on average), ``table4.csv`` (one line for each method and benchmark, unrounded, with its record) and
``table4.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dyvte.report import paper
from dyvte.report.paper import AVERAGE
from dyvte.report.record import ResultRecord
from dyvte.report.tables import Column, Entry, Located, Table, by_benchmark, in_order, table_command
from dyvte.report.titles import BASELINE, average_title, averaged, flops_unit, label_of, title_of

TITLE = "Table 4: DyVTE and other methods that remove visual tokens"
SAME = ("batch_size", "chunks")
"""Settings that seconds depend on."""


def heading_of(benchmark: str) -> str:
    """A benchmark's name in the paper's tables."""
    found = [names[benchmark] for names in paper.COLUMNS.values() if benchmark in names]
    return found[0] if found else title_of(benchmark)


def table_of(records: Sequence[Located]) -> Table:
    """Methods of one model: the baseline first, DyVTE and what builds on it last.

    Raises:
        ValueError: there are no records, of several models, or two of one method and benchmark.
    """
    models = sorted({record.model for _, record in records})
    if len(models) != 1:
        raise ValueError(f"Table 4 is of one model; these records are of {', '.join(models) or 'none'}.")
    benchmarks = list(dict.fromkeys(record.benchmark for _, record in records))
    ordered = sorted(records, key=lambda pair: _order(pair[1].method))
    entries = in_order(
        (_entry(path, record) for path, record in ordered),
        [heading_of(name) for name in benchmarks],
        [heading_of(name) for name in averaged(benchmarks)],
        printed="table4",
        average_printed=set(benchmarks) == set(paper.TABLE4),
    )
    factor, unit = flops_unit(record.tflops for _, record in records)
    # in the order of the rows: a benchmark without the baseline comes last
    headings = dict.fromkeys(entry.benchmark for entry in entries if entry.benchmark != AVERAGE)
    measures = Column("score", "Score", "{:.1f}"), Column("tflops", unit, "{:.3g}", factor=factor)
    columns = by_benchmark((*headings, AVERAGE), *measures) + by_benchmark(
        [AVERAGE],
        Column("kv_bytes", "KV MiB", "{:.3g}", "", factor=2**-20),
        Column("seconds", "Seconds", "{:.3g}", ""),
    )
    notes = _notes([record for _, record in records], benchmarks)
    return Table("table4", TITLE, ("Model", "Method"), columns, entries, notes)


def _order(method: str) -> tuple[int, int]:
    parts = method.split("+")
    return (0 if method == BASELINE else 2 if "dyvte" in parts else 1), len(parts)


def _entry(path: Path, record: ResultRecord) -> Entry:
    label = label_of(record)
    return Entry(
        row=(paper.shown_model(record.model), label),
        names={"model": record.model, "method": record.method, "label": label},
        benchmark=heading_of(record.benchmark),
        values={name: getattr(record, name) for name in ("score", "tflops", "kv_bytes", "seconds")},
        paper_row=paper.rival_row(record.model, record.method),
        sources=(str(path),),
        commit=record.commit,
    )


def _notes(records: Sequence[ResultRecord], benchmarks: Sequence[str]) -> tuple[str, ...]:
    first, last = min(r.scoring.created for r in records), max(r.scoring.created for r in records)
    notes = [
        "FLOPs are of one prefill with vision tower, projector, gates and scores; KV MiB are keys and values held "
        "after it; seconds are the whole generation's, divided by the batch size. The last two are averages over the "
        "benchmarks.",
        f"Seconds are of separate runs, scored between {first} and {last}; expect them to vary with what else "
        f"the machine did. {_conditions(records)}",
    ]
    if (title := average_title(benchmarks)) != "Average":
        notes.append(f"{title}: only scores in percent are averaged.")
    return tuple(notes)


def _conditions(records: Sequence[ResultRecord]) -> str:
    """Whether the answers come from the same machine, software and batches."""

    def answered(record: ResultRecord, name: str) -> list[str]:
        return sorted({str(getattr(by.run, name)) for by in record.answered})

    kinds = {
        "hardware": {str(answered(record, "device") or record.scoring.hardware) for record in records},
        "precision": {str(answered(record, "dtype")) for record in records},
        "attention kernel": {str(answered(record, "attention")) for record in records},
        "versions": {str(answered(record, "versions") or record.scoring.versions) for record in records},
        **{name: {record.settings.get(name, "") for record in records} for name in SAME},
    }
    differing = [name for name, values in kinds.items() if len(values) > 1]
    if differing:
        return f"They are not comparable: the runs differ in {', '.join(differing)}."
    batch = records[0].settings.get("batch_size", "1")
    return f"Machine, software and batch size ({batch}) were the same."


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.rivals_table", description="Table 4 from result records."
    )
    table_command(parser, lambda options, records: table_of(records), argv)


if __name__ == "__main__":
    main()
