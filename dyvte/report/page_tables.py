"""The paper's tables as the HTML report shows them: from CSV, benchmarks in columns, the paper's value below ours."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dyvte.report import paper_table, rivals_table, state_table
from dyvte.report.compare import BASELINE
from dyvte.report.paper import AVERAGE

NOTHING = "-"
Line = dict[str, str]
"""One line of a CSV file: one number, or a few, of one row and one benchmark."""


@dataclass(frozen=True)
class Measure:
    """One number of each cell: the CSV's column, its heading, and how it is written."""

    column: str
    heading: str
    form: str


@dataclass(frozen=True)
class Layout:
    """How the CSV of a table is turned into rows and columns.

    Attributes:
        row: the column that names a row.
        measures: shown for each benchmark, with the paper's value where ``paper_<column>`` has one.
        average: shown once, of the line ``Average``.
    """

    title: str
    row: str
    measures: tuple[Measure, ...]
    average: tuple[Measure, ...] = ()


SCORE = Measure("score", "Score", "{:.1f}")
FLOPS = Measure("tflops", "TFLOPs", "{:.3g}")
EXIT = Measure("exit_layer", "Exit", "{:.1f}")
LAYOUTS = {
    **{name: Layout(title, "method", (SCORE, FLOPS)) for name, title in paper_table.TITLES.items()},
    **{name: Layout(title, "states", (SCORE, EXIT)) for name, title in state_table.TITLES.items()},
    "table4": Layout(
        rivals_table.TITLE,
        "label",
        (SCORE, FLOPS),
        (Measure("kv_bytes", "KV MiB", "{:.3g}"), Measure("seconds", "Seconds", "{:.3g}")),
    ),
}
"""By the name of the CSV file, in the order of the paper after sorting."""


@dataclass(frozen=True)
class Cell:
    """A number as text, and the paper's with the difference (empty where it has none)."""

    text: str
    paper: str = ""


@dataclass(frozen=True)
class Table:
    """A table ready for the template.

    Attributes:
        benchmarks, headings: the two lines of the header; every benchmark spans ``headings``.
        extra: headings of the columns at the end.
        rows: (name, cells) each.
        with_paper: whether the paper has a value for some cell.
        lines: all of the CSV, the header first, with sources relative to the report's folder.
    """

    name: str
    title: str
    source: str
    benchmarks: list[str]
    headings: list[str]
    extra: list[str]
    rows: list[tuple[str, list[Cell]]]
    with_paper: bool
    lines: list[list[str]]


def read_table(path: Path, root: Path) -> Table:
    """Read the CSV of a table; its name says which it is.

    Raises:
        ValueError: a column is missing, or there are no lines.
    """
    layout = LAYOUTS[path.stem]
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        lines = list(reader)
        columns = list(reader.fieldnames or [])
    needed = {"model", "benchmark", layout.row, *(m.column for m in (*layout.measures, *layout.average))}
    if missing := needed - set(columns):
        raise ValueError(f"{path} lacks the columns {sorted(missing)}; make the table again.")
    if not lines:
        raise ValueError(f"{path} has no lines; make the table again.")
    factor, unit = rivals_table.flops_unit(
        [float(line["tflops"]) for line in lines if line.get("tflops")] or [1]
    )
    rows = _rows(layout, lines, factor)
    return Table(
        path.stem,
        layout.title,
        path.relative_to(root).as_posix(),
        _benchmarks(lines),
        [unit if measure is FLOPS else measure.heading for measure in layout.measures],
        [measure.heading for measure in layout.average],
        rows,
        any(cell.paper for _, cells in rows for cell in cells),
        [columns, *([_below(line[column] or "", root) for column in columns] for line in lines)],
    )


def _benchmarks(lines: Sequence[Line]) -> list[str]:
    """In the order of the file, the average last."""
    names = dict.fromkeys(line["benchmark"] for line in lines)
    return sorted(names, key=lambda name: name == AVERAGE)


def _rows(layout: Layout, lines: Sequence[Line], factor: float) -> list[tuple[str, list[Cell]]]:
    places = {(line["model"], line[layout.row], line["benchmark"]): line for line in lines}
    several = len({line["model"] for line in lines}) > 1
    names = dict.fromkeys((line["model"], line[layout.row]) for line in lines)
    rows = []
    for model, row in sorted(names, key=lambda name: (name[0], name[1] not in ("Baseline", BASELINE))):
        found = [places.get((model, row, benchmark)) for benchmark in _benchmarks(lines)]
        cells = [_cell(line, measure, factor) for line in found for measure in layout.measures]
        average = places.get((model, row, AVERAGE))
        cells += [_cell(average, measure, factor) for measure in layout.average]
        text = "no exit" if row == BASELINE else row.replace("+", ", ") if layout.row == "states" else row
        rows.append((f"{Path(model).name}: {text}" if several else text, cells))
    return rows


def _cell(line: Line | None, measure: Measure, factor: float) -> Cell:
    if line is None or not line[measure.column]:
        return Cell(NOTHING)
    if measure is EXIT and line["states"] == BASELINE:
        return Cell(NOTHING)
    value = float(line[measure.column])
    scale = factor if measure is FLOPS else 1 / 2**20 if measure.column == "kv_bytes" else 1
    text = measure.form.format(scale * value)
    printed = line.get(f"paper_{measure.column}")
    if not printed:
        return Cell(text)
    return Cell(text, f"paper {float(printed):.1f}, {value - float(printed):+.1f}")


def _below(text: str, root: Path) -> str:
    """Paths in the report's folder (one, or several with blanks between) relative to it, however they name it."""
    for prefix in (root, root.resolve(), os.path.relpath(root)):
        text = re.sub(rf"(?<!\S){re.escape(str(prefix))}/", "", text)
    return text
