"""The paper's Tables 1 and 2 (arXiv:2411.19628): rows, columns, and the values printed there (paper.json)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Value:
    """What the paper prints of one model on one benchmark."""

    score: float
    tflops: float


def row_of(model: str, method: str) -> str | None:
    """The paper's row of a model (a folder or hub name) run with this method; None where it has none."""
    rows = _ROWS.get(Path(model).name.lower())
    return rows[method == "dyvte"] if rows and method in ("none", "dyvte") else None


def value_of(table: str, row: str | None, column: str) -> Value | None:
    """The paper's value; None where it has none."""
    printed = _values()[table].get(row, {}).get(column)
    return Value(printed["score"], printed["tflops"]) if printed else None


def known_models(folders: Iterable[Path]) -> list[Path]:
    """The folders below these that are checkpoints of the paper's models, by their names."""
    return [
        place
        for folder in folders
        if folder.is_dir()
        for place in sorted(folder.iterdir())
        if place.name.lower() in _ROWS and (place / "config.json").is_file()
    ]


def _values() -> dict:
    return json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
