"""The paper's tables (arXiv:2411.19628): rows, columns, and the values printed there (paper.json)."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path

AVERAGE = "Average"

COLUMNS: dict[str, dict[str, str]] = {
    "table1": {"seed": "SEED", "mme": "MME", "mmbench": "MMB", "pope": "POPE", "mmvet": "MM-Vet"},
    "table2": {"gqa": "GQA", "vqav2": "VQAv2", "textvqa": "TextVQA", "sqa": "SQA-I"},
}
"""Benchmarks of each table, by our name, with the heading that the paper gives them."""

HAS_AVERAGE = {"table1": False, "table2": True}
TITLES = {
    "table1": "Table 1: DyVTE on benchmarks for multimodal LLMs",
    "table2": "Table 2: DyVTE on conventional vision-language benchmarks",
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
"""Checkpoint names, in lower case, with the paper's rows without and with DyVTE."""


def row_of(model: str, method: str) -> str | None:
    """The paper's row of a model (a folder or hub name) run with this method; None where it has none."""
    rows = _ROWS.get(Path(model).name.lower())
    return rows[method == "dyvte"] if rows and method in ("none", "dyvte") else None


def shown_model(model: str) -> str:
    """The name of one of the paper's models, without its folders; other models as they are."""
    return Path(model).name if row_of(model, "none") else model


def values_of(table: str, row: str | None, column: str) -> dict[str, float]:
    """What a table of the paper prints in a row and column, by measure; nothing where it has no such place."""
    return dict(_values()[table].get(row, {}).get(column, {}))


RIVALS = {
    "none": "LLaVA-1.5 7B",
    "tome": "ToMe",
    "fastv": "FastV",
    "dyvte": "DyVTE",
    "dyvte+fastv": "DyVTE+FastV",
}
"""Methods with the rows of Table 4, which are all of LLaVA-1.5 7B."""
TABLE4 = ("sqa", "mmvet", "seed", "mmbench")
"""The benchmarks of Table 4."""


def rival_row(model: str, method: str) -> str | None:
    """The row of a method in Table 4; None for other models and methods."""
    return RIVALS.get(method) if _is_7b(model) else None


UNPLACED = ("row 11", "row 12")
"""Rows of Table 5 whose states are not certain."""


def state_row(model: str, states: str) -> str | None:
    """The row of gates with these states (``mean_text+last_text``) in Tables 5 and 6; None for other models."""
    return states if _is_7b(model) else None


def _is_7b(model: str) -> bool:
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


@functools.cache
def _values() -> dict[str, dict[str | None, dict[str, dict[str, float]]]]:
    """Table -> row -> column -> measure -> value."""
    return json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
