"""Files that are written whole or not at all, and JSON that names its file when it cannot be read."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: str | Path) -> Generator[Path]:
    """A temporary path in the same folder, which replaces ``path`` when the block ends without an error.

    Readers, and a process killed at any moment, see the old file or the new one, never a part of it. Missing folders
    are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut could leave the new name on an empty file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, json.dumps(content, indent=indent) + "\n")


def read_text(path: str | Path) -> str:
    """A UTF-8 file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from None


def parse_json(text: str | bytes, place: str | Path) -> Any:
    """The content of a JSON text.

    Args:
        place: the file, or the line of a file, for the message.

    Raises:
        ValueError: it is not JSON in UTF-8, is nested too deeply, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not valid JSON ({error}); write or download it again") from None


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON; see :func:`parse_json`.
    """
    return parse_json(read_text(path), path)


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The content of a JSON file that holds one object.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_json`, and when it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, it holds a {type(content).__name__}")
    return content
