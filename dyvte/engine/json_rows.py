"""The rows of a JSON file of any size as a sequence: a row is read and parsed when it is asked for.

The file is a JSON list, or has a row on each line. What is held is where each row begins and ends, 24 bytes a row: a
million questions take as much as one image.

Called by :mod:`dyvte.engine.instructions` and :mod:`dyvte.engine.questions`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from dyvte.io import check_encoding, parse_json, read_json

T = TypeVar("T")
U = TypeVar("U")

_DECODE = json.JSONDecoder().raw_decode
_WINDOW = 1 << 12
"""Bytes read for an element of a list at first; most are shorter."""


class JsonRows(Sequence[T], Generic[T]):
    """The elements of a JSON list, or the lines of a file that are not blank. Only a line feed ends a line: strings
    in JSON may hold U+2028 and others.

    Slices are sequences of the same kind. Several threads and processes may read at once; it can be pickled where
    ``make`` can.

    Args:
        make: (content of a row, place for messages) -> element; may raise ValueError.
        is_list: whether the file is one JSON value: a list, whose elements are the rows, or another one, without
            rows. Else each line is a row.

    Raises:
        ValueError: the file is in another encoding than UTF-8, or is a Git LFS pointer, or should be one JSON value
            and is none. Asking for an element: its line is not JSON, or ``make`` refuses it; the message names the
            place.
    """

    def __init__(self, path: Path, make: Callable[[Any, str], T], is_list: bool = False) -> None:
        self._path, self._make = path, make
        self._unit = "element" if is_list else "line"
        self._file = path.open("rb")  # noqa: SIM115 - read as long as the sequence lives
        check_encoding(self._file.read(64), path)
        self._file.seek(0)
        bounds = _element_bounds(self._file, path) if is_list else _line_bounds(self._file)
        three: Any = np.dtype((np.int64, 3))  # typed as np.void
        self._bounds: NDArray[np.int64] = np.fromiter(bounds, dtype=three)

    def map(self, function: Callable[[T], U]) -> JsonRows[U]:
        """The same rows with ``function`` applied to each element when it is asked for."""
        make = self._make
        return self._like(self._bounds, lambda content, place: function(make(content, place)))

    def _like(self, bounds: NDArray[np.int64], make: Callable[[Any, str], U]) -> JsonRows[U]:
        other: JsonRows[U] = object.__new__(JsonRows)
        other.__dict__.update(self.__dict__, _bounds=bounds, _make=make)
        return other

    def __len__(self) -> int:
        return len(self._bounds)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> JsonRows[T]: ...
    def __getitem__(self, index: int | slice) -> T | JsonRows[T]:
        if isinstance(index, slice):
            return self._like(self._bounds[index], self._make)
        start, end, number = (int(value) for value in self._bounds[index])
        place = f"{self._path}, {self._unit} {number}"
        content = os.pread(self._file.fileno(), end - start, start)
        return self._make(parse_json(content, place), place)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, for worker processes."""
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._file = self._path.open("rb")  # noqa: SIM115 - as above


def _line_bounds(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """First byte, byte behind the last one, and number, of each line that is not blank."""
    at = 0
    for number, line in enumerate(file, 1):
        if line.strip():
            yield at, at + len(line), number
        at += len(line)


def _element_bounds(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, int]]:
    """The same for each element of a JSON list; nothing for other JSON.

    Raises:
        ValueError: the file is not JSON.
    """
    source = file.fileno()
    at, mark = _next_mark(source, 0)
    if mark != b"[":
        read_json(path)
        return
    try:
        at, mark = _next_mark(source, at + 1)
        more, number = mark != b"]", 0
        while more:
            end = _element_end(source, at)
            yield at, end, number
            number += 1
            at, mark = _next_mark(source, end)
            if more := mark == b",":
                at, _ = _next_mark(source, at + 1)
        if _next_mark(source, at + 1)[1]:
            raise ValueError("more behind the list")
    except (ValueError, RecursionError):
        read_json(path)  # says what is wrong, with line and column
        raise


def _element_end(source: int, start: int) -> int:
    """The byte behind a JSON value, which a comma or the end of the list follows.

    Raises:
        ValueError, RecursionError: there is no such value.
    """
    size = _WINDOW
    while True:
        window = os.pread(source, size, start)
        is_whole = len(window) < size
        try:
            # one character for each byte: what has a meaning in JSON is ASCII, which UTF-8 writes as single bytes
            _, length = _DECODE(window.decode("latin-1"))
        except json.JSONDecodeError:
            if is_whole:
                raise
        else:
            # else a number may go on behind the window
            if _next_mark(source, start + length)[1] in (b",", b"]"):
                str(window[:length], "utf-8")
                return start + length
            if is_whole:
                raise ValueError("no comma behind an element")
        size *= 2


def _next_mark(source: int, at: int) -> tuple[int, bytes]:
    """Place and value of the first byte from ``at`` on that is no blank; no byte at the end of the file."""
    while piece := os.pread(source, 64, at):
        if rest := piece.lstrip(b" \t\n\r"):
            return at + len(piece) - len(rest), rest[:1]
        at += len(piece)
    return at, b""
