"""A JSON-lines file of any size as a sequence: a line is read and parsed when it is asked for.

What is held is where each line begins and ends, 24 bytes a line: a million questions take as much as one image.

Called by :mod:`dyvte.engine.questions`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from dyvte.io import check_encoding, parse_json

T = TypeVar("T")
U = TypeVar("U")


class JsonLines(Sequence[T], Generic[T]):
    """The lines of a file that are not blank. Only a line feed ends one: strings in JSON may hold U+2028 and others.

    Slices are sequences of the same kind. Several threads may read at once.

    Args:
        make: (content of a line, place for messages) -> element; may raise ValueError.

    Raises:
        ValueError: the file is in another encoding than UTF-8, or is a Git LFS pointer. Asking for an element: its
            line is not JSON, or ``make`` refuses it; the message names file and line.
    """

    def __init__(self, path: Path, make: Callable[[Any, str], T]) -> None:
        self._path, self._make = path, make
        self._file = path.open("rb")  # noqa: SIM115 - read as long as the sequence lives
        check_encoding(self._file.read(64), path)
        self._file.seek(0)
        self._lines = _line_bounds(self._file)

    def map(self, function: Callable[[T], U]) -> JsonLines[U]:
        """The same lines with ``function`` applied to each element when it is asked for."""
        make = self._make
        return self._like(self._lines, lambda content, place: function(make(content, place)))

    def _like(self, lines: NDArray[np.int64], make: Callable[[Any, str], U]) -> JsonLines[U]:
        other: JsonLines[U] = object.__new__(JsonLines)
        other._path, other._file, other._make, other._lines = self._path, self._file, make, lines
        return other

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> JsonLines[T]: ...
    def __getitem__(self, index: int | slice) -> T | JsonLines[T]:
        if isinstance(index, slice):
            return self._like(self._lines[index], self._make)
        start, end, number = (int(value) for value in self._lines[index])
        place = f"{self._path}, line {number}"
        content = os.pread(self._file.fileno(), end - start, start)
        return self._make(parse_json(content, place), place)


def _line_bounds(file: Any) -> NDArray[np.int64]:
    """(lines, 3): first byte, byte behind the last one, and number, of each line that is not blank."""
    bounds, at = [], 0
    parts: list[NDArray[np.int64]] = []
    for number, line in enumerate(file, 1):
        if line.strip():
            bounds.append((at, at + len(line), number))
        at += len(line)
        if len(bounds) == 1 << 16:
            parts.append(np.array(bounds, dtype=np.int64))
            bounds = []
    parts.append(np.array(bounds, dtype=np.int64).reshape(-1, 3))
    return np.concatenate(parts)
