"""Table 4 of the paper and beyond: every method on the chosen benchmarks, with its costs, from result records.

    python -m dyvte.report.rivals_table RECORDS... --out DIR

Writes the same files as :mod:`dyvte.report.paper_table`. In ``table4.md`` and ``table4.tex`` methods are in rows:
score and FLOPs on each benchmark and on average, KV bytes and seconds on average. Run by :mod:`dyvte.reproduce`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dyvte.report import paper
from dyvte.report.record import ResultRecord
from dyvte.report.tables import Column, Entry, Located, Table, make_table, table_command
from dyvte.report.titles import BASELINE, average_title, averaged, flops_unit, label_of, title_of


def heading_of(benchmark: str) -> str:
    """A benchmark's name in the paper's tables."""
    return paper.HEADINGS.get(benchmark) or title_of(benchmark)


def table_of(records: Sequence[Located]) -> Table:
    """Methods of one model: the baseline first, DyVTE and its combinations last.

    Raises:
        ValueError: there are no records, of several models, or two of one method and benchmark.
    """
    models = sorted({record.model for _, record in records})
    if len(models) != 1:
        raise ValueError(f"Table 4 is of one model; these records are of {', '.join(models) or 'none'}.")
    ordered = sorted(records, key=lambda pair: _order(pair[1].method))
    benchmarks = list(dict.fromkeys(record.benchmark for _, record in ordered))
    factor, unit = flops_unit(record.tflops for _, record in records)
    return make_table(
        "table4",
        "Method",
        [_entry(path, record) for path, record in ordered],
        [heading_of(name) for name in benchmarks],
        (Column("score", "Score", "{:.1f}"), Column("tflops", unit, "{:.3g}", factor=factor)),
        averaged=[heading_of(name) for name in averaged(benchmarks)],
        average_columns=(
            Column("kv_bytes", "KV MiB", "{:.3g}", factor=2**-20),
            Column("seconds", "Seconds", "{:.3g}"),
        ),
        notes=_notes([record for _, record in records], benchmarks),
    )


def _order(method: str) -> tuple[int, int]:
    parts = method.split("+")
    return (0 if method == BASELINE else 2 if "dyvte" in parts else 1), len(parts)


def _entry(path: Path, record: ResultRecord) -> Entry:
    label = label_of(record)
    return Entry(
        label=label,
        names={"model": record.model, "method": record.method, "label": label},
        benchmark=heading_of(record.benchmark),
        values={name: getattr(record, name) for name in ("score", "tflops", "kv_bytes", "seconds")},
        paper_row=paper.RIVALS.get(record.method) if paper.is_llava_7b(record.model) else None,
        sources=(str(path),),
        commit=record.commit,
    )


def _notes(records: Sequence[ResultRecord], benchmarks: Sequence[str]) -> list[str]:
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
    return notes


def _conditions(records: Sequence[ResultRecord]) -> str:
    """A sentence on whether the answers come from the same machine, software and batches."""

    def conditions(record: ResultRecord) -> dict[str, object]:
        def answered(name: str) -> list[str]:
            return sorted({str(getattr(by.run, name)) for by in record.answered})

        return {
            "hardware": answered("device") or record.scoring.hardware,
            "precision": answered("dtype"),
            "attention kernel": answered("attention"),
            "versions": answered("versions") or record.scoring.versions,
            **{name: record.settings.get(name, "") for name in ("batch_size", "chunks")},
        }

    first, *others = map(conditions, records)
    differing = [name for name in first if any(other[name] != first[name] for other in others)]
    if differing:
        return f"They are not comparable: the runs differ in {', '.join(differing)}."
    batch = records[0].settings.get("batch_size", "1")
    return f"Machine, software and batch size ({batch}) were the same."


def main(argv: Sequence[str] | None = None) -> None:
    table_command("rivals_table", "Table 4 from result records.", table_of, argv)


if __name__ == "__main__":
    main()
