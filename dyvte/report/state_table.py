"""Tables 3, 5 and 6 of the paper from result records: gates that look at different states.

python -m dyvte.report.state_table table5 RECORDS... --out DIR

A record's states are read from the name of its folder of gates (``mean_text+last_text``, as ``dyvte.study.gate_grid``
names it). Writes ``table5.md``, ``.tex`` and ``.csv`` (one line for each number, unrounded, with its record). Beside
our values stand the paper's where the model is the paper's, LLaVA-1.5 7B.

The paper's rows have no names of states. Those of one and two states follow from its text and their order, and so do,
most likely, the last three of Table 5. Its rows 11 and 12 are of the two combinations left, in an order that is not
known: they are printed below the table. Rows of Table 6 are taken to be in the order of the statistics in its text.
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
from dyvte.report.record import ResultRecord, find_records
from dyvte.report.table import Row, to_latex, to_markdown
from dyvte.study.gate_grid import grid

TITLES = {
    "table3": "Table 3: gates that look at one or two states",
    "table5": "Table 5: gates that look at all combinations of the states",
    "table6": "Table 6: gates that look at attention",
}
GRIDS = {"table3": "pairs", "table5": "states", "table6": "attention"}
COLUMNS = {"gqa": "GQA", "textvqa": "TextVQA", "mmvet": "MM-Vet", "sqa": "SQA-I"}
BASELINE, NOTHING = "none", "-"


@dataclass(frozen=True)
class Cell:
    """Score and mean exit layer of one row on one benchmark, and the paper's (score, layer) where it has them."""

    model: str
    row: str
    column: str
    score: float
    exit_layer: float
    paper: tuple[float, float] | None
    source: str


def rows_in(table: str) -> list[str]:
    """The names of the states of a table's rows, in the paper's order."""
    return list(grid(GRIDS[table], num_layers=1))


def cells_of(table: str, records: Sequence[tuple[Path, ResultRecord]]) -> list[Cell]:
    """The table's cells, by model and row; averages where a row is complete.

    Raises:
        ValueError: no record belongs into the table, or two to one place.
    """
    rows = [BASELINE, *rows_in(table)]
    found: dict[tuple[str, str, str], Cell] = {}
    for path, record in records:
        row = BASELINE if record.method == "none" else Path(record.settings.get("gates", "")).name
        if record.benchmark not in COLUMNS or record.method not in ("none", "dyvte") or row not in rows:
            continue
        key = record.model, row, COLUMNS[record.benchmark]
        if key in found:
            raise ValueError(f"{found[key].source} and {path} are of the same model, states and benchmark.")
        printed = paper.exit_value_of(table, record.model, row, key[2])
        found[key] = Cell(*key, record.score, record.mean_exit_layer, printed, str(path))
    if all(row == BASELINE for _, row, _ in found):
        raise ValueError(
            f"None of the records is of gates in {table}: it needs {', '.join(COLUMNS)} with gates in folders "
            f"named like {rows[-1]}."
        )
    cells = []
    for model in dict.fromkeys(model for model, _, _ in found):
        for row in rows:
            own = [found[key] for column in COLUMNS.values() if (key := (model, row, column)) in found]
            cells += own
            if len(own) == len(COLUMNS):
                cells.append(_average(table, own))
    return cells


def _average(table: str, cells: Sequence[Cell]) -> Cell:
    model, row = cells[0].model, cells[0].row
    score, layer = mean([cell.score for cell in cells]), mean([cell.exit_layer for cell in cells])
    printed = paper.exit_value_of(table, model, row, paper.AVERAGE)
    sources = " ".join(cell.source for cell in cells)
    return Cell(model, row, paper.AVERAGE, score, layer, printed, sources)


def rows_of(table: str, cells: Sequence[Cell]) -> list[Row]:
    """Header and rows of text cells: score and mean exit layer on each benchmark; in brackets the paper's."""
    columns = [*COLUMNS.values(), paper.AVERAGE]
    header = ["Model", "States", *(text for column in columns for text in (column, "Exit layer"))]
    rows = [header]
    places = {(cell.model, cell.row, cell.column): cell for cell in cells}
    for model, row in dict.fromkeys((cell.model, cell.row) for cell in cells):
        label = "no exit" if row == BASELINE else ", ".join(row.split("+"))
        line = [Path(model).name if paper.row_of(model, "none") else model, label]
        for column in columns:
            cell = places.get((model, row, column))
            line += _texts(cell) if cell else [NOTHING, NOTHING]
        rows.append(line)
    return rows


def _texts(cell: Cell) -> list[str]:
    score, layer = f"{cell.score:.1f}", NOTHING if cell.row == BASELINE else f"{cell.exit_layer:.1f}"
    if cell.paper:
        score += f" ({cell.paper[0]:.1f}, {cell.score - cell.paper[0]:+.1f})"
        layer += f" ({cell.paper[1]:.1f})"
    return [score, layer]


def to_csv(table: str, cells: Sequence[Cell]) -> str:
    """All numbers unrounded, with their sources."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["score", "paper_score", "exit_layer", "paper_exit_layer"]
    writer.writerow(["table", "model", "states", "benchmark", *names, "record"])
    for cell in cells:
        score, layer = cell.paper or (None, None)
        values = [cell.score, score, cell.exit_layer, layer]
        writer.writerow([table, cell.model, cell.row, cell.column, *values, cell.source])
    return text.getvalue()


def notes(table: str, cells: Sequence[Cell]) -> str:
    """What a reader must know of the table's numbers."""
    text = f"Exit layers are zero-based means. Every number with its record: `{table}.csv`.\n"
    if not any(cell.paper for cell in cells):
        return text
    text += "In brackets: the paper's value, and for scores ours minus the paper's.\n"
    if table == "table5":
        columns = [*COLUMNS.values(), paper.AVERAGE]
        for row in paper.UNPLACED:
            values = [paper.exit_values(table, row, column) for column in columns]
            shown = ", ".join(
                f"{column} {value[0]:.1f} at {value[1]:.1f}"
                for column, value in zip(columns, values, strict=True)
            )
            text += f"The paper's {row}, of one of the two combinations without a bracket: {shown}.\n"
    return text


def write(table: str, records: Sequence[tuple[Path, ResultRecord]], out: Path) -> str:
    """Write all three forms into ``out`` and return the Markdown.

    Raises:
        ValueError: see ``cells_of``.
    """
    cells = cells_of(table, records)
    rows = rows_of(table, cells)
    markdown = f"# {TITLES[table]}\n\n{to_markdown(rows)}\n{notes(table, cells)}"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{table}.md").write_text(markdown, encoding="utf-8")
    (out / f"{table}.tex").write_text(to_latex(rows), encoding="utf-8")
    (out / f"{table}.csv").write_text(to_csv(table, cells), encoding="utf-8")
    return markdown


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.state_table", description="Tables 3, 5 and 6 from result records."
    )
    parser.add_argument("table", choices=list(TITLES))
    parser.add_argument("records", nargs="+", type=Path, help="record files, or folders that hold some")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        records = [(path, ResultRecord.read(path)) for path in find_records(options.records)]
        print(write(options.table, records, options.out), end="")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
