"""Layout of the paper's tables, and their forms: Markdown, LaTeX, CSV, JSON.

:mod:`dyvte.report.paper_table`, :mod:`dyvte.report.state_table` and :mod:`dyvte.report.rivals_table` choose rows and
columns; :mod:`dyvte.report.page` reads the JSON, whose keys are the fields of :class:`Table`.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dyvte import cli
from dyvte.benchmarks.benchmark import mean
from dyvte.io import read_json_object, write_json, write_whole
from dyvte.report.paper import AVERAGE, TITLES, printed_benchmarks, shown_model, values_of
from dyvte.report.record import ResultRecord, find_records, records_parser

NOTHING = "-"
Located = tuple[Path, ResultRecord]
"""A record and its file."""


@dataclass(frozen=True)
class Column:
    """One measure that a table shows for each benchmark.

    Attributes:
        measure: a key of ``Entry.values``.
        form: format of the value times ``factor``.
        compared: format of the paper's value beside ours, with ``reference`` and ``difference`` (ours minus the
            paper's).
    """

    measure: str
    heading: str
    form: str
    compared: str = "{reference:.1f}, {difference:+.1f}"
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """All numbers of one row on one benchmark, or on average.

    Attributes:
        label: name of the row in the table, beside the model.
        names: key of the row, by heading of the CSV file; one is the "model".
        benchmark: its heading.
        values: by measure, unrounded; None where unknown.
        paper_row: the row of the paper's table that it is compared with.
        references: the paper's values, by measure; ``make_table`` sets them.
        sources: files of the records that the numbers come from.
        commit: of the code that answered.
        hidden: measures that are in the CSV file but not in the table.
    """

    label: str
    names: Mapping[str, str]
    benchmark: str
    values: Mapping[str, float | None]
    paper_row: str | None
    references: Mapping[str, float] = field(default_factory=dict)
    sources: Sequence[str]
    commit: str | None
    hidden: Sequence[str] = ()

    def cell(self, column: Column) -> tuple[str, str]:
        """The number (``NOTHING`` where unknown) and its comparison (may be empty) as text."""
        value, reference = self.values[column.measure], self.references.get(column.measure)
        if value is None or column.measure in self.hidden:
            return NOTHING, ""
        text = column.form.format(column.factor * value)
        if reference is None:
            return text, ""
        return text, column.compared.format(reference=reference, difference=value - reference)

    def line(self, compared: Iterable[str]) -> dict[str, Any]:
        """A line of the CSV file: every number, and for ``compared`` measures the reference and the difference."""
        line: dict[str, Any] = {**self.names, "benchmark": self.benchmark}
        for name, value in self.values.items():
            line[name] = value
            if name in compared:
                reference = line[f"paper_{name}"] = self.references.get(name)
                line[f"{name}_difference"] = None if value is None or reference is None else value - reference
        return line | {"record": list(self.sources), "commit": self.commit}


@dataclass(frozen=True)
class Table:
    """A table, ready to be written.

    Attributes:
        name: of its files.
        labels: headings of the columns that name a row.
        columns: (benchmark, heading) of the other columns.
        rows: (names, cells) of each row; a cell is a number and its comparison.
        lines: of the CSV file; "record" holds the files that the numbers come from.
        notes: sentences below the table.
        brackets: sentence on the comparisons in brackets; empty where there are none.
    """

    name: str
    title: str
    labels: Sequence[str]
    columns: Sequence[Sequence[str]]
    rows: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]]
    lines: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    brackets: str

    def texts(self) -> list[list[str]]:
        """Header and rows as text, comparisons in brackets; the heading of a score is the benchmark alone."""
        header = [benchmark if heading == "Score" else heading for benchmark, heading in self.columns]
        body = [
            [*names, *(f"{text} ({compared})" if compared else text for text, compared in cells)]
            for names, cells in self.rows
        ]
        return [[*self.labels, *header], *body]

    def markdown(self) -> str:
        """The table in Markdown, with title and notes."""
        notes = [*self.notes, f"Every number with its record: `{self.name}.csv`.", self.brackets]
        text = "".join(f"{note}\n" for note in notes if note)
        return f"# {self.title}\n\n{to_markdown(self.texts())}\n{text}"

    def write(self, out: Path) -> None:
        """Write ``NAME.md``, ``.tex``, ``.csv`` and ``.json`` into a folder.

        The JSON names sources relative to the folder, so that both can be moved together.
        """
        write_whole(out / f"{self.name}.md", self.markdown())
        write_whole(out / f"{self.name}.tex", to_latex(self.texts()))
        write_whole(out / f"{self.name}.csv", to_csv(self.flat_lines()))
        write_json(
            out / f"{self.name}.json", asdict(self._moved(lambda source: os.path.relpath(source, out)))
        )

    @classmethod
    def read(cls, path: Path, relative_to: Path) -> Table:
        """The table of a JSON file, with sources relative to a folder; ValueError when it is not a table."""
        try:
            table = cls(**read_json_object(path))
            return table._moved(lambda source: os.path.relpath(path.parent / source, relative_to))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a table of this version ({error}); make it again") from None

    def _moved(self, rename: Callable[[str], str]) -> Table:
        lines = [{**line, "record": [rename(source) for source in line["record"]]} for line in self.lines]
        return replace(self, lines=lines)

    def flat_lines(self) -> list[dict[str, Any]]:
        """``lines`` with "record" as one string."""
        return [{**line, "record": " ".join(line["record"])} for line in self.lines]


def make_table(
    name: str,
    label: str,
    entries: Iterable[Entry],
    benchmarks: Sequence[str],
    columns: Sequence[Column],
    *,
    averaged: Sequence[str],
    average_columns: Sequence[Column] = (),
    notes: Sequence[str] = (),
) -> Table:
    """The table of these entries, rows in the order of their first entries, with the paper's values.

    Args:
        name: of the table of the paper.
        label: heading of ``Entry.label``.
        benchmarks: in the order of the columns.
        averaged: benchmarks of the average, for rows that have all of them; empty for a table without average.
        average_columns: further columns of the average.

    Raises:
        ValueError: two entries are of the same row and benchmark.
    """
    rows: dict[tuple[str, ...], dict[str, Entry]] = {}
    for entry in entries:
        row = rows.setdefault(tuple(entry.names.values()), {})
        if (first := row.setdefault(entry.benchmark, entry)) is not entry:
            same = ", ".join(name for name in entry.names if name != "table")
            raise ValueError(
                f"{first.sources[0]} and {entry.sources[0]} are of the same {same} and benchmark."
            )
    headings = [*benchmarks, AVERAGE] if averaged else benchmarks
    places = [(benchmark, column) for benchmark in headings for column in columns]
    places += [(AVERAGE, column) for column in average_columns]
    compared = {column.measure for column in columns}
    lines, shown, compares = [], [], False
    for row in rows.values():
        if averaged and row.keys() >= set(averaged):
            row[AVERAGE] = _mean_of([row[benchmark] for benchmark in averaged])
        for benchmark in (heading for heading in headings if heading in row):
            if benchmark != AVERAGE or set(benchmarks) == printed_benchmarks(name):
                references = values_of(name, row[benchmark].paper_row, benchmark)
                row[benchmark] = replace(row[benchmark], references=references)
                compares |= bool(references)
            lines.append(row[benchmark].line(compared))
        cells = [row[where].cell(column) if where in row else (NOTHING, "") for where, column in places]
        first = next(iter(row.values()))
        shown.append(((shown_model(first.names["model"]), first.label), cells))
    differ = "" if all("difference" in column.compared for column in columns) else "for scores "
    brackets = f"In brackets: the paper's value, and {differ}ours minus the paper's." if compares else ""
    heads = [(benchmark, column.heading) for benchmark, column in places]
    return Table(name, TITLES[name], ("Model", label), heads, shown, lines, notes, brackets)


def _mean_of(entries: Sequence[Entry]) -> Entry:
    """The mean of one row's entries; None for a measure that one of them lacks."""
    values = {}
    for name in entries[0].values:
        known = [value for entry in entries if (value := entry.values[name]) is not None]
        values[name] = mean(known) if len(known) == len(entries) else None
    sources = [source for entry in entries for source in entry.sources]
    return replace(entries[0], benchmark=AVERAGE, values=values, sources=sources, commit=None)


def to_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Header and rows as an aligned table; the first two columns are text, the others numbers."""
    columns = []
    for place, (head, *cells) in enumerate(zip(*rows, strict=True)):
        width = max(map(len, (head, *cells)))
        align, rule = (str.ljust, "-" * width) if place < 2 else (str.rjust, "-" * (width - 1) + ":")
        columns.append([align(head, width), rule, *(align(cell, width) for cell in cells)])
    return "".join(f"| {' | '.join(row)} |\n" for row in zip(*columns, strict=True))


def to_latex(rows: Sequence[Sequence[str]]) -> str:
    """A ``tabular`` for the booktabs package, with a rule where the first column changes."""
    header, *body = [[cell.replace("%", r"\%").replace("_", r"\_") for cell in row] for row in rows]
    lines = [r"\begin{tabular}{ll" + "r" * (len(header) - 2) + "}", r"\toprule", " & ".join(header) + r" \\"]
    for previous, row in zip([[""], *body], body, strict=False):
        lines += [r"\midrule"] * (row[0] != previous[0]) + [" & ".join(row) + r" \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines with the same keys, as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def table_command(
    module: str,
    description: str,
    make: Callable[..., Table],
    argv: Sequence[str] | None,
    **choices: Iterable[str],
) -> None:
    """The command line of a table: reads records, writes the table's files into a folder, and prints Markdown.

    Args:
        make: called with the chosen ones of ``choices``, and the records with their files.
    """
    parser = records_parser(f"dyvte.report.{module}", description, **choices)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")

    def action(options: argparse.Namespace) -> None:
        records = [(path, ResultRecord.read(path)) for path in find_records(options.records)]
        table = make(*(getattr(options, name) for name in choices), records)
        table.write(options.out)
        print(table.markdown(), end="")

    cli.run(parser, action, argv)
