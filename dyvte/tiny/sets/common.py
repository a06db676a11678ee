"""What the sets share: scenes of the evaluation writers, images as bytes, and LLaVA's kinds of files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dyvte.io import write_whole
from dyvte.tiny.scenes import Scene, draw, render

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_SEEDS = {
    "gqa": 1,
    "pope": 2,
    "textvqa": 3,
    "heldout": 4,
    "vqav2": 5,
    "vqav2_test": 6,
    "sqa": 7,
    "mme": 8,
    "mmbench": 9,
    "seed": 10,
    "mmvet": 11,
}


def scenes_of(name: str) -> Iterator[tuple[Scene, np.random.Generator]]:
    """Endless scenes of the evaluation writers for a set, each with randomness of its own."""
    for index in count():
        yield draw("eval", _SEEDS[name], index), np.random.default_rng((_SEEDS[name], index, 2))


def generator_of(name: str) -> np.random.Generator:
    """Randomness for what concerns a set as a whole."""
    return np.random.default_rng((_SEEDS[name], 3))


def encode(scenes: Sequence[Scene], image_format: str = "JPEG") -> list[bytes]:
    """Each scene as an image file of this format; JPEG without chroma subsampling."""
    files = []
    for pixels in render(scenes).numpy() if scenes else ():
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, image_format, quality=95, subsampling=0)
        files.append(buffer.getvalue())
    return files


def write_images(scenes: Sequence[Scene], paths: Sequence[Path], image_format: str = "JPEG") -> None:
    """Write scenes in this format whatever the suffix, since SEED-Bench's images have none."""
    for content, path in zip(encode(scenes, image_format), paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def prepare(folder: str | Path, images: str) -> tuple[Path, Path]:
    """The folder and its image folder, made where missing."""
    folder = Path(folder)
    (folder / images).mkdir(parents=True, exist_ok=True)
    return folder, folder / images


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """Write JSON lines."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one line."""
    write_whole(path, json.dumps(content))
