"""Tables 3, 5 and 6 of the paper from result records: gates that look at different states.

    python -m dyvte.report.state_table table5 RECORDS... --out DIR

A record's states are read from the name of its folder of gates (``mean_text+last_text``), so
:mod:`dyvte.study.gate_grid` must name folders by :func:`combinations`. Writes the same files as
:mod:`dyvte.report.paper_table`. For the paper's model, LLaVA-1.5 7B, the paper's values are shown beside ours.

The paper does not name the states of its rows. Those of one and two states follow from its text and their order, and
so, most likely, do the last three of Table 5. Its rows 11 and 12 are of the two combinations left, in an unknown
order: they are printed below the table. Rows of Table 6 are assumed to be in the order of the statistics in its text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from dyvte.gates.states import ATTENTION_STATES, STATES
from dyvte.report import paper
from dyvte.report.record import ResultRecord
from dyvte.report.tables import Column, Entry, Located, Table, make_table, table_command
from dyvte.report.titles import BASELINE

TABLES = ("table3", "table5", "table6")
BENCHMARKS = {"gqa": "GQA", "textvqa": "TextVQA", "mmvet": "MM-Vet", "sqa": "SQA-I"}
HEADINGS = list(BENCHMARKS.values())
COLUMNS = Column("score", "Score", "{:.1f}"), Column("exit_layer", "Exit layer", "{:.1f}", "{reference:.1f}")


def combinations(states: Sequence[str], most: int | None = None) -> list[tuple[str, ...]]:
    """All choices of one to ``most`` states, in the paper's order: singles, pairs, and so on."""
    sizes = range(1, (most or len(states)) + 1)
    return [chosen for size in sizes for chosen in itertools.combinations(states, size)]


def rows_in(table: str) -> list[str]:
    """The names of the states of a table's rows, in the paper's order."""
    among = ATTENTION_STATES if table == "table6" else STATES
    return ["+".join(states) for states in combinations(among, 2 if table == "table3" else None)]


def table_of(name: str, records: Sequence[Located]) -> Table:
    """Score and mean exit layer of every model and kind of gates; averages of rows that are complete.

    Raises:
        ValueError: no record belongs into the table, or two to one place.
    """
    rows = [BASELINE, *rows_in(name)]
    models = [record.model for _, record in records]
    found = [entry for path, record in records if (entry := _entry(name, path, record, rows))]
    if all(entry.names["states"] == BASELINE for entry in found):
        raise ValueError(
            f"None of the records is of gates in {name}: it needs {', '.join(BENCHMARKS)} with gates in folders "
            f"named like {rows[-1]}."
        )
    found.sort(key=lambda entry: (models.index(entry.names["model"]), rows.index(entry.names["states"])))
    notes = ["Exit layers are zero-based means."]
    if name == "table5" and any(paper.values_of(name, entry.paper_row, entry.benchmark) for entry in found):
        for row in paper.UNPLACED:
            values = {where: paper.values_of(name, row, where) for where in (*HEADINGS, paper.AVERAGE)}
            shown = ", ".join(
                f"{where} {v['score']:.1f} at {v['exit_layer']:.1f}" for where, v in values.items()
            )
            notes.append(f"The paper's {row}, of one of the two combinations without a bracket: {shown}.")
    return make_table(name, "States", found, HEADINGS, COLUMNS, averaged=HEADINGS, notes=notes)


def _entry(name: str, path: Path, record: ResultRecord, rows: Sequence[str]) -> Entry | None:
    states = BASELINE if record.method == BASELINE else Path(record.settings.get("gates", "")).name
    if record.benchmark not in BENCHMARKS or record.method not in (BASELINE, "dyvte") or states not in rows:
        return None
    return Entry(
        label="no exit" if states == BASELINE else states.replace("+", ", "),
        names={"table": name, "model": record.model, "states": states},
        benchmark=BENCHMARKS[record.benchmark],
        values={"score": record.score, "exit_layer": record.mean_exit_layer},
        paper_row=states if paper.is_llava_7b(record.model) else None,
        sources=(str(path),),
        commit=record.commit,
        hidden=("exit_layer",) if states == BASELINE else (),
    )


def main(argv: Sequence[str] | None = None) -> None:
    table_command("state_table", "Tables 3, 5 and 6 from result records.", table_of, argv, table=TABLES)


if __name__ == "__main__":
    main()
