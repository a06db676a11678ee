"""Table 4 of the paper and beyond: every method on the chosen benchmarks, with what it costs, from result records.

python -m dyvte.report.rivals_table RECORDS... --out DIR

Writes ``table4.md`` and ``table4.tex`` (methods in rows; score and FLOPs on each benchmark and on average, KV bytes
and seconds on average) and ``table4.csv`` (one line for each method and benchmark, unrounded, with its record).
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dyvte.benchmarks.benchmark import mean
from dyvte.report import paper
from dyvte.report.compare import BASELINE, label_of
from dyvte.report.paper import AVERAGE, Value
from dyvte.report.record import ResultRecord, find_records
from dyvte.report.table import Row, title_of, to_latex, to_markdown

TITLE = "Table 4: DyVTE and other methods that let visual tokens leave"
NOTHING = "-"
SAME = ("batch_size", "chunks")
"""Settings that seconds depend on."""


@dataclass(frozen=True)
class Entry:
    """One method on one benchmark, or on average; costs are means per sample.

    Attributes:
        column: the benchmark as the paper's tables name it, or ``AVERAGE``.
        kv_bytes: None where the record does not hold them.
        paper: what Table 4 prints; None for other models, methods and benchmarks.
        source: the record, or records, that the numbers come from.
    """

    model: str
    method: str
    label: str
    column: str
    score: float
    tflops: float
    kv_bytes: float | None
    seconds: float
    paper: Value | None
    source: str


def column_of(benchmark: str) -> str:
    """A benchmark's name in the paper's tables."""
    return next(
        (names[benchmark] for names in paper.COLUMNS.values() if benchmark in names), title_of(benchmark)
    )


def entries_of(records: Sequence[tuple[Path, ResultRecord]]) -> list[Entry]:
    """The entries by method (baseline first, DyVTE and what builds on it last), with averages of complete rows.

    Raises:
        ValueError: there are no records, of several models, or two of one method and benchmark.
    """
    models = sorted({record.model for _, record in records})
    if len(models) != 1:
        raise ValueError(f"Table 4 is of one model; these records are of {', '.join(models) or 'none'}.")
    rows: dict[str, dict[str, Entry]] = {}
    for path, record in sorted(records, key=lambda pair: _order(pair[1].method)):
        entry = _entry(path, record)
        row = rows.setdefault(entry.label, {})
        if entry.column in row:
            raise ValueError(f"{row[entry.column].source} and {path} are of the same method and benchmark.")
        row[entry.column] = entry
    benchmarks = dict.fromkeys(record.benchmark for _, record in records)
    with_average = []
    for row in rows.values():
        own = [row[column_of(name)] for name in benchmarks if column_of(name) in row]
        with_average += own
        if len(own) == len(benchmarks):
            with_average.append(_average(own, as_in_paper=set(benchmarks) == set(paper.TABLE4)))
    return with_average


def _order(method: str) -> tuple[int, int]:
    parts = method.split("+")
    return (0 if method == BASELINE else 2 if "dyvte" in parts else 1), len(parts)


def _entry(path: Path, record: ResultRecord) -> Entry:
    column = column_of(record.benchmark)
    return Entry(
        record.model,
        record.method,
        label_of(record),
        column,
        record.score,
        record.tflops,
        record.kv_bytes,
        record.seconds,
        paper.rival_value_of(record.model, record.method, column),
        str(path),
    )


def _average(entries: Sequence[Entry], as_in_paper: bool) -> Entry:
    one = entries[0]
    held = [entry.kv_bytes for entry in entries]
    return Entry(
        one.model,
        one.method,
        one.label,
        AVERAGE,
        mean([entry.score for entry in entries]),
        mean([entry.tflops for entry in entries]),
        None if None in held else mean([value for value in held if value is not None]),
        mean([entry.seconds for entry in entries]),
        paper.rival_value_of(one.model, one.method, AVERAGE) if as_in_paper else None,
        " ".join(entry.source for entry in entries),
    )


def flops_unit(values: Sequence[float]) -> tuple[float, str]:
    """Factor and name of the unit for TFLOPs; GFLOPs where a model is so small that TFLOPs would be all zeros."""
    return (1000.0, "GFLOPs") if max(values) < 0.1 else (1.0, "TFLOPs")


def rows_of(entries: Sequence[Entry]) -> list[Row]:
    """Header and rows of text cells; in brackets the paper's value and by how much ours differs."""
    factor, unit = flops_unit([entry.tflops for entry in entries])
    columns = [*(column for column in dict.fromkeys(e.column for e in entries) if column != AVERAGE), AVERAGE]
    header = [cell for column in columns for cell in (column, unit)]
    rows = [["Model", "Method", *header, "KV MiB", "Seconds"]]
    for label in dict.fromkeys(entry.label for entry in entries):
        row = {entry.column: entry for entry in entries if entry.label == label}
        model = next(iter(row.values())).model
        name = Path(model).name if paper.row_of(model, "none") else model
        cells = [cell for column in columns for cell in _cells(row.get(column), factor)]
        rows.append([name, label, *cells, *_costs(row.get(AVERAGE))])
    return rows


def _cells(entry: Entry | None, factor: float) -> list[str]:
    if entry is None:
        return [NOTHING, NOTHING]
    score, tflops = f"{entry.score:.1f}", f"{factor * entry.tflops:.3g}"
    if entry.paper:
        score += f" ({entry.paper.score:.1f}, {entry.score - entry.paper.score:+.1f})"
        tflops += f" ({entry.paper.tflops:.1f}, {entry.tflops - entry.paper.tflops:+.1f})"
    return [score, tflops]


def _costs(average: Entry | None) -> list[str]:
    if average is None:
        return [NOTHING, NOTHING]
    held = NOTHING if average.kv_bytes is None else f"{average.kv_bytes / 2**20:.3g}"
    return [held, f"{average.seconds:.3g}"]


def to_csv(entries: Sequence[Entry]) -> str:
    """All numbers unrounded, with their sources."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["score", "paper_score", "tflops", "paper_tflops", "kv_bytes", "seconds"]
    writer.writerow(["model", "method", "label", "benchmark", *names, "record"])
    for entry in entries:
        printed = (entry.paper.score, entry.paper.tflops) if entry.paper else (None, None)
        numbers = [entry.score, printed[0], entry.tflops, printed[1], entry.kv_bytes, entry.seconds]
        writer.writerow([entry.model, entry.method, entry.label, entry.column, *numbers, entry.source])
    return text.getvalue()


def notes(records: Sequence[ResultRecord], entries: Sequence[Entry]) -> str:
    """What a reader must know of the table's numbers."""
    first, last = min(record.created for record in records), max(record.created for record in records)
    text = (
        "FLOPs are of one prefill with vision tower, projector, gates and scores; KV MiB are keys and values held "
        "after it; seconds are the whole generation's, divided by the batch size. The last two are averages over the "
        "benchmarks.\n"
        f"Seconds are of separate runs, scored between {first} and {last}; expect them to vary with what else "
        f"the machine did. {_conditions(records)}\n"
        "Every number with its record: `table4.csv`.\n"
    )
    if any(entry.paper for entry in entries):
        text += "In brackets: the paper's value, and ours minus the paper's.\n"
    return text


def _conditions(records: Sequence[ResultRecord]) -> str:
    """Whether the runs had the same machine, software and batches."""
    kinds = {
        "hardware": {str(record.hardware) for record in records},
        "versions": {str(record.versions) for record in records},
        **{name: {record.settings.get(name, "") for record in records} for name in SAME},
    }
    differing = [name for name, values in kinds.items() if len(values) > 1]
    if differing:
        return f"They are not comparable: the runs differ in {', '.join(differing)}."
    batch = records[0].settings.get("batch_size", "1")
    return f"Machine, software and batch size ({batch}) were the same."


def write(records: Sequence[tuple[Path, ResultRecord]], out: Path) -> str:
    """Write all three forms into ``out`` and return the Markdown.

    Raises:
        ValueError: see ``entries_of``.
    """
    entries = entries_of(records)
    rows = rows_of(entries)
    markdown = f"# {TITLE}\n\n{to_markdown(rows)}\n{notes([record for _, record in records], entries)}"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table4.md").write_text(markdown, encoding="utf-8")
    (out / "table4.tex").write_text(to_latex(rows), encoding="utf-8")
    (out / "table4.csv").write_text(to_csv(entries), encoding="utf-8")
    return markdown


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.rivals_table", description="Table 4 from result records."
    )
    parser.add_argument("records", nargs="+", type=Path, help="record files, or folders that hold some")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        records = [(path, ResultRecord.read(path)) for path in find_records(options.records)]
        print(write(records, options.out), end="")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
