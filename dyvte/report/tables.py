"""Tables: which numbers stand in which row and column, and their forms: Markdown, LaTeX, CSV, JSON.

The HTML page reads the JSON. ``table``, ``paper_table``, ``state_table`` and ``rivals_table`` say which rows and
columns each table has.
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
from dyvte.report.paper import AVERAGE, values_of
from dyvte.report.record import ResultRecord, add_records, find_records

NOTHING = "-"
PAPER = "{reference:.1f}, {difference:+.1f}"
"""How a paper's value is written beside ours."""
Located = tuple[Path, ResultRecord]
"""A record and its file."""


@dataclass(frozen=True)
class Column:
    """What a table shows of each row.

    Attributes:
        measure: a key of ``Entry.values``.
        form: of the value, times ``factor``.
        compared: form of the comparison: of ``reference``, ``difference`` (value less reference), ``percent``; empty
            for a measure that is compared with nothing.
        benchmark: heading of the benchmark; its columns follow one another. Empty where rows are of one each.
    """

    measure: str
    heading: str
    form: str
    compared: str = PAPER
    benchmark: str = ""
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """All numbers of one row on one benchmark, or on average.

    Attributes:
        row: the names that the table shows.
        names: what tells the row from all others, by heading of the CSV file.
        benchmark: by its heading.
        values: by measure, unrounded; None where unknown.
        paper_row: the row of the paper's table that it is compared with.
        references: what to compare with, by measure, where there is something.
        sources: files of the records that the numbers come from.
        commit: of the code that answered.
        hidden: measures that the table leaves out.
    """

    row: tuple[str, ...]
    names: Mapping[str, str]
    benchmark: str = ""
    values: Mapping[str, float | None]
    paper_row: str | None = None
    references: Mapping[str, float] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    commit: str | None = None
    hidden: tuple[str, ...] = ()

    def texts(self, column: Column) -> tuple[str, str]:
        """The number and its comparison as text; both may be missing."""
        value, reference = self.values.get(column.measure), self.references.get(column.measure)
        if value is None or column.measure in self.hidden:
            return NOTHING, ""
        text = column.form.format(column.factor * value)
        if reference is None:
            return text, ""
        percent = 100 * (value / reference - 1) if reference else 0.0
        return text, column.compared.format(
            reference=reference, difference=value - reference, percent=percent
        )

    def line(self, compared: Iterable[str]) -> dict[str, Any]:
        """For CSV: every number, and of the ``compared`` measures the reference and the difference."""
        line: dict[str, Any] = {**self.names, "benchmark": self.benchmark}
        for name, value in self.values.items():
            line[name] = value
            if name in compared:
                reference = self.references.get(name)
                difference = None if value is None or reference is None else value - reference
                line |= {f"paper_{name}": reference, f"{name}_difference": difference}
        return line | {"record": " ".join(self.sources), "commit": self.commit}


@dataclass(frozen=True)
class Table:
    """Entries and the columns that show them.

    Attributes:
        name: of its files.
        labels: headings of the columns that name a row.
        notes: sentences below the table; ``markdown`` adds what stands in brackets.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[tuple[str, ...], list[tuple[str, str]]]]:
        """(names, cells) of each row; a cell is a number and its comparison."""
        found: dict[tuple[str, ...], dict[str, Entry]] = {}
        for entry in self.entries:
            found.setdefault(tuple(entry.names.values()), {})[entry.benchmark] = entry
        return [
            (
                next(iter(row.values())).row,
                [row[c.benchmark].texts(c) if c.benchmark in row else (NOTHING, "") for c in self.columns],
            )
            for row in found.values()
        ]

    def texts(self) -> list[list[str]]:
        """Header and rows as text, the comparison in brackets; a benchmark's score is headed by its name."""
        header = [c.benchmark if c.benchmark and c.measure == "score" else c.heading for c in self.columns]
        body = [
            [*names, *(f"{text} ({compared})" if compared else text for text, compared in cells)]
            for names, cells in self.rows()
        ]
        return [[*self.labels, *header], *body]

    def lines(self) -> list[dict[str, Any]]:
        """The entries for CSV."""
        compared = {column.measure for column in self.columns if column.compared}
        return [entry.line(compared) for entry in self.entries]

    @property
    def compares(self) -> bool:
        """Whether some number has a reference."""
        return any(entry.references for entry in self.entries)

    def markdown(self) -> str:
        """With title and notes."""
        notes = [*self.notes, f"Every number with its record: `{self.name}.csv`."]
        if self.compares:
            all_differ = all("difference" in column.compared for column in self.columns if column.compared)
            notes.append(
                f"In brackets: the paper's value, and {'' if all_differ else 'for scores '}ours minus the paper's."
            )
        return f"# {self.title}\n\n{to_markdown(self.texts())}\n" + "".join(f"{note}\n" for note in notes)

    def write(self, out: Path) -> None:
        """Write ``NAME.md``, ``.tex``, ``.csv`` and ``.json`` into a folder.

        The JSON names sources relative to the folder, so that both can be moved together.
        """
        write_whole(out / f"{self.name}.md", self.markdown())
        write_whole(out / f"{self.name}.tex", to_latex(self.texts()))
        write_whole(out / f"{self.name}.csv", to_csv(self.lines()))
        moved = tuple(
            replace(entry, sources=tuple(os.path.relpath(source, out) for source in entry.sources))
            for entry in self.entries
        )
        write_json(out / f"{self.name}.json", asdict(replace(self, entries=moved)))

    @classmethod
    def read(cls, path: Path, relative_to: Path) -> Table:
        """Read the JSON form, with the names of sources relative to a folder.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a table.
        """
        content = read_json_object(path)
        try:
            entries = []
            for entry in content.pop("entries"):
                sources = tuple(os.path.relpath(path.parent / name, relative_to) for name in entry["sources"])
                tuples = {"row": tuple(entry["row"]), "hidden": tuple(entry["hidden"]), "sources": sources}
                entries.append(Entry(**{**entry, **tuples}))
            columns = [Column(**column) for column in content.pop("columns")]
            lists = {name: tuple(content.pop(name)) for name in ("labels", "notes")}
            table = cls(columns=tuple(columns), entries=tuple(entries), **lists, **content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a table of this version ({error}); make it again") from None
        if not table.entries:
            raise ValueError(f"{path} has no entries; make the table again")
        return table


def by_benchmark(benchmarks: Iterable[str], *columns: Column) -> tuple[Column, ...]:
    """The same columns for each benchmark."""
    return tuple(replace(column, benchmark=name) for name in benchmarks for column in columns)


def in_order(
    entries: Iterable[Entry],
    benchmarks: Sequence[str],
    averaged: Sequence[str],
    printed: str,
    average_printed: bool = True,
) -> tuple[Entry, ...]:
    """Entries by row, within a row in the order of ``benchmarks``; each with the values printed in the paper.

    Args:
        averaged: benchmarks of the average, which closes a row that has all of them; none where the table has none.
        printed: the table of the paper.
        average_printed: whether the paper's average is over the same benchmarks.

    Raises:
        ValueError: two are of the same row and benchmark.
    """
    rows: dict[tuple[str, ...], dict[str, Entry]] = {}
    for entry in entries:
        row = rows.setdefault(tuple(entry.names.values()), {})
        if entry.benchmark in row:
            first, second = row[entry.benchmark].sources[0], entry.sources[0]
            same = [name for name in entry.names if name != "table"]
            raise ValueError(f"{first} and {second} are of the same {', '.join(same)} and benchmark.")
        row[entry.benchmark] = entry
    found: list[Entry] = []
    for row in rows.values():
        found += [row[name] for name in benchmarks if name in row]
        if averaged and all(name in row for name in averaged):
            found.append(mean_of([row[name] for name in averaged]))
    return tuple(
        replace(entry, references=values_of(printed, entry.paper_row, entry.benchmark))
        if average_printed or entry.benchmark != AVERAGE
        else entry
        for entry in found
    )


def mean_of(entries: Sequence[Entry]) -> Entry:
    """The mean of one row's entries; a measure that one of them lacks is left unknown."""
    values = {}
    for name in entries[0].values:
        known = [value for entry in entries if (value := entry.values[name]) is not None]
        values[name] = mean(known) if len(known) == len(entries) else None
    sources = tuple(source for entry in entries for source in entry.sources)
    return replace(entries[0], benchmark=AVERAGE, values=values, sources=sources, commit=None)


def to_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Header and rows as an aligned table; the first two columns are text, the others numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = ["-" * width if column < 2 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    aligned = [
        [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in (aligned[0], rule, *aligned[1:]))


def to_latex(rows: Sequence[Sequence[str]]) -> str:
    """A ``tabular`` for the booktabs package, with a rule where the first column changes."""
    header, *body = [[cell.replace("%", r"\%").replace("_", r"\_") for cell in row] for row in rows]
    lines = [r"\begin{tabular}{ll" + "r" * (len(header) - 2) + "}", r"\toprule", " & ".join(header) + r" \\"]
    for previous, row in zip([[""], *body], body, strict=False):
        lines += [r"\midrule"] * (row[0] != previous[0]) + [" & ".join(row) + r" \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(lines: Iterable[Mapping[str, Any]]) -> str:
    """Lines with the same keys, as CSV with a header."""
    lines, text = list(lines), io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def table_command(
    parser: argparse.ArgumentParser,
    make: Callable[[argparse.Namespace, list[Located]], Table],
    argv: Sequence[str] | None,
) -> None:
    """The command line of a table: records in, files in a folder and Markdown on the screen out."""
    add_records(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")

    def action(options: argparse.Namespace) -> None:
        table = make(options, [(path, ResultRecord.read(path)) for path in find_records(options.records)])
        table.write(options.out)
        print(table.markdown(), end="")

    cli.run(parser, action, argv)
