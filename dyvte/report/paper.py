"""The paper's tables (arXiv:2411.19628): rows, columns, and the values printed there (paper.json).

Read by the table commands of this package, :mod:`dyvte.report.page` and :mod:`dyvte.reproduce`. Headings and rows are
keys of paper.json and must match it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

AVERAGE = "Average"
_PRINTED: dict[str, dict[str | None, dict[str, dict[str, float]]]] = json.loads(
    Path(__file__).with_name("paper.json").read_text(encoding="utf-8")
)
"""Table -> row -> column -> measure -> value."""
_PRINTED["table3"] = _PRINTED["table5"]  # Table 3 is the first rows of Table 5

COLUMNS: dict[str, dict[str, str]] = {
    "table1": {"seed": "SEED", "mme": "MME", "mmbench": "MMB", "pope": "POPE", "mmvet": "MM-Vet"},
    "table2": {"gqa": "GQA", "vqav2": "VQAv2", "textvqa": "TextVQA", "sqa": "SQA-I"},
}
"""Table -> our name of a benchmark -> the paper's heading."""
HEADINGS = COLUMNS["table1"] | COLUMNS["table2"]

TITLES = {
    "table1": "Table 1: DyVTE on benchmarks for multimodal LLMs",
    "table2": "Table 2: DyVTE on conventional vision-language benchmarks",
    "table3": "Table 3: gates that look at one or two states",
    "table4": "Table 4: DyVTE and other methods that remove visual tokens",
    "table5": "Table 5: gates that look at all combinations of the states",
    "table6": "Table 6: gates that look at attention",
}

_ROWS = {
    "llava-v1.5-7b": ("LLaVA-1.5 7B", "LLaVA-DyVTE 7B"),
    "llava-1.5-7b-hf": ("LLaVA-1.5 7B", "LLaVA-DyVTE 7B"),
    "llava-v1.5-13b": ("LLaVA-1.5 13B", "LLaVA-DyVTE 13B"),
    "llava-1.5-13b-hf": ("LLaVA-1.5 13B", "LLaVA-DyVTE 13B"),
    "vila-7b": ("VILA 7B", "VILA-DyVTE 7B"),
    "eagle-x5-7b": ("Eagle-X5 7B", "Eagle-DyVTE 7B"),
    "internvl-chat-vit-6b-vicuna-7b": ("InternVL 7B", "Intern-DyVTE 7B"),
}
"""Checkpoint name in lower case -> the paper's rows without and with DyVTE."""


def row_of(model: str, method: str) -> str | None:
    """The paper's row of a model (a folder or hub name) with this method; None where the paper has none."""
    rows = _ROWS.get(Path(model).name.lower())
    return rows[method == "dyvte"] if rows and method in ("none", "dyvte") else None


def shown_model(model: str) -> str:
    """The name of a model in tables: without folders for the paper's models, unchanged for others."""
    return Path(model).name if row_of(model, "none") else model


def values_of(table: str, row: str | None, column: str) -> dict[str, float]:
    """The values in a cell of one of the paper's tables, by measure; empty where there is no such cell."""
    return dict(_PRINTED[table].get(row, {}).get(column, {}))


def printed_benchmarks(table: str) -> set[str]:
    """The benchmarks of a table, by their headings."""
    return set(next(iter(_PRINTED[table].values()))) - {AVERAGE}


RIVALS = {
    "none": "LLaVA-1.5 7B",
    "tome": "ToMe",
    "fastv": "FastV",
    "dyvte": "DyVTE",
    "dyvte+fastv": "DyVTE+FastV",
}
"""Method -> row of Table 4, which is about LLaVA-1.5 7B alone."""


UNPLACED = ("row 11", "row 12")
"""Rows of Table 5 whose states are unknown."""


def is_llava_7b(model: str) -> bool:
    """Whether a model is that of Tables 3 to 6, LLaVA-1.5 7B."""
    return row_of(model, "none") == "LLaVA-1.5 7B"


def known_models(folders: Iterable[Path]) -> list[Path]:
    """The folders below these that are checkpoints of the paper's models, by their names."""
    return [
        place
        for folder in folders
        if folder.is_dir()
        for place in sorted(folder.iterdir())
        if place.name.lower() in _ROWS and (place / "config.json").is_file()
    ]
