"""Instruction data in LLaVA's format: a JSON list of ``{"id", "image", "conversations": [{"from", "value"}, ...]}``.

``image`` is a path or a list of paths, absent from samples of text alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dyvte.io import read_json


def read_records(data_path: str | Path) -> list[dict[str, Any]]:
    """Read an instruction file.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not a nonempty JSON list.
    """
    path = Path(data_path)
    if not path.is_file():
        raise FileNotFoundError(f"no instruction data at {path}: check --data_path")
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise ValueError(f"{path} must hold a nonempty JSON list of samples")
    return records


def image_paths(record: dict[str, Any]) -> list[str]:
    """The images of a record, in order; none for a text-only one."""
    image = record.get("image")
    if not image:
        return []
    return [image] if isinstance(image, str) else list(image)
