"""Instruction data in LLaVA's format: a JSON list of ``{"id", "image", "conversations": [{"from", "value"}, ...]}``.

``image`` is a path or a list of paths, absent from samples of text alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dyvte.engine.questions import IMAGE_TOKEN
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


def check_records(records: Sequence[dict[str, Any]], takes_images: bool = True) -> None:
    """Raise ValueError when records are malformed; the message names the first few."""
    problems = [problem for record in records if (problem := _problem(record, takes_images))]
    if problems:
        raise ValueError(f"{len(problems)} samples cannot be used, such as: " + "; ".join(problems[:5]))


def _problem(record: dict[str, Any], takes_images: bool) -> str | None:
    """What is wrong with a record, or None."""
    name = f"sample {record.get('id', '?')!r}"
    turns = record.get("conversations")
    if not turns:
        return f"{name} has no conversations"
    if any("from" not in turn or not isinstance(turn.get("value"), str) for turn in turns):
        return f"{name} has a turn without 'from' or text 'value'"
    images = image_paths(record)
    if images and not takes_images:
        return f"{name} has an image but no --vision_tower is given"
    places = sum(turn["value"].count(IMAGE_TOKEN) for turn in turns)
    if images and places != len(images):
        return f"{name} has {len(images)} images but {places} {IMAGE_TOKEN} tokens"
    return None


def modality_lengths(records: Sequence[dict[str, Any]]) -> list[int]:
    """Words per sample, negative for text-only ones: what LLaVA's sampler groups by."""
    lengths = []
    for record in records:
        words = sum(len(turn["value"].split()) for turn in record["conversations"])
        lengths.append(words if image_paths(record) else -words)
    return lengths


def data_digest(data_path: str | Path, records: Sequence[dict[str, Any]], image_folder: str | Path) -> str:
    """SHA-256 over an instruction file, and the names and sizes of the images in its records."""
    path = Path(data_path)
    digest = hashlib.sha256(sha256_of([path], path.parent)[path.name].encode())
    for record in records:
        for image in image_paths(record):
            file = Path(image_folder) / image
            digest.update(f"{image} {file.stat().st_size if file.is_file() else 'missing'}\n".encode())
    return digest.hexdigest()
