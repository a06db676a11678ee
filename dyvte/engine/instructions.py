"""Instruction data in LLaVA's format: a JSON list of ``{"id", "image", "conversations": [{"from", "value"}, ...]}``.

``image`` is a path or a list of paths, absent from samples of text alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dyvte.io import read_json
from dyvte.provenance import sha256_of


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


def data_digest(data_path: str | Path, records: Sequence[dict[str, Any]], image_folder: str | Path) -> str:
    """SHA-256 over an instruction file, and the names and sizes of the images in its records."""
    path = Path(data_path)
    digest = hashlib.sha256(sha256_of([path], path.parent)[path.name].encode())
    for record in records:
        for image in image_paths(record):
            file = Path(image_folder) / image
            digest.update(f"{image} {file.stat().st_size if file.is_file() else 'missing'}\n".encode())
    return digest.hexdigest()
