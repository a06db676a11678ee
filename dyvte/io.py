"""Files that are written whole or not at all, locks, and JSON that names its file when it cannot be read.

Called from most of the project.
"""

from __future__ import annotations

import codecs
import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "UTF-8 with a byte-order mark",
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@contextmanager
def whole_file(path: str | Path) -> Generator[Path]:
    """A temporary path in the same folder, which replaces ``path`` when the block ends without an error.

    Readers, and a process killed at any moment, see the old file or the new one, never a part of it. Missing folders
    are made.

    Raises:
        OSError: there is no space, or no permission; the message names a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut could leave the new name on an empty file
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # as of a full disk
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, json.dumps(content, indent=indent) + "\n")


@contextmanager
def locked(lock: Path, told: str, wait: float = 0.0) -> Generator[None]:
    """Hold a lock file against other processes.

    Args:
        told: what one that holds it is doing, for the message.
        wait: seconds to wait for it.

    Raises:
        ValueError: another process holds it.
    """
    try:
        with FileLock(lock, timeout=wait):
            yield
    except Timeout:
        raise ValueError(f"another run is {told}; wait for it, or stop it") from None


def move_aside(path: Path, run: str) -> Path:
    """Rename a file so that another can take its place; returns its new name, which is free.

    The name tells which run it was: ``answers.20260131-124500-RUN.jsonl``, with the time of its last change.
    """
    changed = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
    name, count = path.with_name(f"{path.stem}.{changed}-{run}{path.suffix}"), 1
    while name.exists():
        count += 1
        name = path.with_name(f"{path.stem}.{changed}-{run}-{count}{path.suffix}")
    path.rename(name)
    return name


def check_output(output: str | Path, source: str | Path, flags: str) -> None:
    """Refuse to write a file over the one that is read.

    Args:
        flags: the two flags that name them, for the message.

    Raises:
        ValueError: both are one file.
    """
    output, source = Path(output).expanduser(), Path(source).expanduser()
    if output.exists() and source.exists() and output.samefile(source):
        raise ValueError(f"{flags} are the same file, {source}: writing would destroy what is read")


def check_encoding(start: bytes, path: str | Path) -> None:
    """Say what a file is that cannot be read as UTF-8 text, from its first bytes.

    Raises:
        ValueError: it begins with a byte-order mark, or is a Git LFS pointer.
    """
    check_pointer(start, path)
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            raise ValueError(f"{path} is {encoding}: save it as UTF-8 without a byte-order mark")


def check_pointer(start: bytes, path: str | Path) -> None:
    """Raise ValueError where a file's first bytes say that it is a Git LFS pointer."""
    if start.startswith(_LFS_POINTER):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself: fetch it with git lfs pull")


def check_file(path: Path, kind: str = "") -> None:
    """Find what is wrong with a file that is not text before it is read.

    Args:
        kind: "image", say, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a Git LFS pointer.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{kind} file not found: {path}" if kind else f"{path} does not exist")
    with path.open("rb") as file:
        check_pointer(file.read(64), path)


def read_text(path: str | Path) -> str:
    """A UTF-8 file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, or a Git LFS pointer.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    content = path.read_bytes()
    check_encoding(content[:64], path)
    try:
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
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
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 text ({error}): save the file as UTF-8") from None
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
