"""Table 1 or 2 of the paper from result records: our value, the paper's, and the difference.

python -m dyvte.report.paper_table table1 RECORDS... --out DIR

Writes ``table1.md``, ``table1.tex`` (the paper's form: models in rows, benchmarks in columns) and ``table1.csv`` (one
line for each number, unrounded, with the record that it comes from).
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dyvte.benchmarks.benchmark import mean
from dyvte.report.compare import label_of
from dyvte.report.paper import AVERAGE, COLUMNS, HAS_AVERAGE, TITLES, Value, row_of, value_of
from dyvte.report.record import ResultRecord, find_records
from dyvte.report.table import Row, to_latex, to_markdown

METHODS = ("none", "dyvte")
NOTHING = "-"


@dataclass(frozen=True)
class Entry:
    """One model with one method on one benchmark (or on average): ours, and the paper's where it has it."""

    model: str
    label: str
    column: str
    ours: Value
    paper: Value | None
    source: str
    commit: str | None = None


def entries_of(table: str, records: Sequence[tuple[Path, ResultRecord]]) -> list[Entry]:
    """The table's entries in the order of rows and columns; averages where a row is complete.

    Raises:
        ValueError: none of the records belongs into the table, or two of them to one place.
    """
    columns = COLUMNS[table]
    found: dict[tuple[str, str], dict[str, Entry]] = {}
    for path, record in records:
        if record.benchmark not in columns or record.method not in METHODS:
            continue
        column = columns[record.benchmark]
        row = row_of(record.model, record.method)
        place = found.setdefault((record.model, label_of(record)), {})
        if column in place:
            raise ValueError(
                f"{place[column].source} and {path} are of the same model, method and benchmark."
            )
        ours = Value(record.score, record.tflops)
        place[column] = Entry(
            record.model,
            label_of(record),
            column,
            ours,
            value_of(table, row, column),
            str(path),
            record.commit,
        )
    if not found:
        raise ValueError(f"None of the records belongs into {table}: it needs {', '.join(columns)}.")
    entries = []
    for (model, label), place in found.items():
        in_order = [place[column] for column in columns.values() if column in place]
        entries += in_order
        if HAS_AVERAGE[table] and len(place) == len(columns):
            entries.append(_average(table, model, label, in_order))
    return entries


def rows_of(table: str, entries: Sequence[Entry]) -> list[Row]:
    """Header and rows of text cells: score and FLOPs in each benchmark's two columns; in brackets the paper's value
    and by how much ours differs.
    """
    factor, unit = (
        (1000.0, "GFLOPs") if max(entry.ours.tflops for entry in entries) < 0.1 else (1.0, "TFLOPs")
    )
    columns = [*COLUMNS[table].values(), *([AVERAGE] if HAS_AVERAGE[table] else [])]
    rows = [["Model", "Method", *(cell for column in columns for cell in (column, unit))]]
    for model, label in dict.fromkeys((entry.model, entry.label) for entry in entries):
        place = {entry.column: entry for entry in entries if (entry.model, entry.label) == (model, label)}
        row = [Path(model).name if row_of(model, "none") else model, label]
        for column in columns:
            entry = place.get(column)
            row += _cells(entry, factor) if entry else [NOTHING, NOTHING]
        rows.append(row)
    return rows


def to_csv(table: str, entries: Sequence[Entry]) -> str:
    """All numbers unrounded, with their sources."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("score", "paper_score", "score_difference", "tflops", "paper_tflops", "tflops_difference")
    writer.writerow(["table", "model", "method", "benchmark", *names, "record", "commit"])
    for entry in entries:
        score = (entry.ours.score, entry.paper and entry.paper.score)
        tflops = (entry.ours.tflops, entry.paper and entry.paper.tflops)
        numbers = [cell for ours, paper in (score, tflops) for cell in (ours, paper, paper and ours - paper)]
        writer.writerow([table, entry.model, entry.label, entry.column, *numbers, entry.source, entry.commit])
    return text.getvalue()


def write(table: str, records: Sequence[tuple[Path, ResultRecord]], out: Path) -> str:
    """Write all three forms into ``out`` and return the Markdown.

    Raises:
        ValueError: see ``entries_of``.
    """
    entries = entries_of(table, records)
    rows = rows_of(table, entries)
    out.mkdir(parents=True, exist_ok=True)
    notes = "In brackets: the paper's value, and ours minus the paper's. Every number with its record: " + (
        f"`{table}.csv`."
    )
    markdown = f"# {TITLES[table]}\n\n{to_markdown(rows)}\n{notes}\n"
    (out / f"{table}.md").write_text(markdown, encoding="utf-8")
    (out / f"{table}.tex").write_text(to_latex(rows), encoding="utf-8")
    (out / f"{table}.csv").write_text(to_csv(table, entries), encoding="utf-8")
    return markdown


def _average(table: str, model: str, label: str, entries: Sequence[Entry]) -> Entry:
    ours = Value(mean([e.ours.score for e in entries]), mean([e.ours.tflops for e in entries]))
    row = row_of(model, "none" if label == "Baseline" else "dyvte")
    sources = " ".join(entry.source for entry in entries)
    return Entry(model, label, AVERAGE, ours, value_of(table, row, AVERAGE), sources)


def _cells(entry: Entry, factor: float) -> list[str]:
    score, tflops = f"{entry.ours.score:.1f}", f"{factor * entry.ours.tflops:.3g}"
    if entry.paper:
        score += f" ({entry.paper.score:.1f}, {entry.ours.score - entry.paper.score:+.1f})"
        difference = entry.ours.tflops - entry.paper.tflops
        tflops += f" ({entry.paper.tflops:.1f}, {difference:+.1f})"
    return [score, tflops]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.paper_table",
        description="Tables 1 and 2 of the paper from result records.",
    )
    parser.add_argument("table", choices=list(COLUMNS))
    parser.add_argument(
        "records", nargs="+", type=Path, help="record files, or folders that hold record.json files"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)

    try:
        records = [(path, ResultRecord.read(path)) for path in find_records(options.records)]
        print(write(options.table, records, options.out), end="")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
