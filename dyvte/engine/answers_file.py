"""An answers file that an interrupted run leaves usable, and that only the same run goes on with."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dyvte.engine.model import resolved_dtype
from dyvte.engine.questions import Item
from dyvte.io import write_whole

logger = logging.getLogger(__name__)

_NOT_SETTINGS = ("answers_file", "device", "dtype", "workers")


def run_settings(args: argparse.Namespace) -> str:
    """A digest of all that answers depend on: the flags, the precision that they mean on this machine, and the files
    (by size and time) they point at.
    """
    described: list[Any] = sorted((k, str(v)) for k, v in vars(args).items() if k not in _NOT_SETTINGS)
    device, dtype = getattr(args, "device", None) or "cuda", getattr(args, "dtype", None) or "auto"
    described.append(("dtype", resolved_dtype(device, dtype)))
    for name in (args.model_path, args.model_base, args.question_file, args.gates):
        place = Path(name).expanduser() if name else None
        if place is None or not place.exists():
            continue
        for file in sorted(place.iterdir()) if place.is_dir() else [place]:
            if file.is_file():
                stat = file.stat()
                described.append((file.name, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


class AnswersFile:
    """A JSON-lines file of answers in the order of the questions; a context manager.

    A hidden file beside it holds the digest of the run's settings. Answers that are there already are kept
    when they come from a run with the same settings (or of unknown settings, but of the same model to the
    same questions); a half-written last line is cut off. Otherwise the file starts anew, as in LLaVA.

    Attributes:
        kept: how many of the questions have answers already.

    Raises:
        OSError: the file cannot be written; the message names it.
        ValueError: another process is writing it.
    """

    def __init__(self, path: str, settings: str, model_id: str, items: Sequence[Item]) -> None:
        self.path = Path(path).expanduser()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        marker = self.path.with_name(f".{self.path.name}.run")
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"another run is writing {self.path}; wait for it, or stop it") from None
        try:
            self.kept, keep_bytes = self._keep(marker, settings, model_id, items)
            self._file = open(self.path, "r+b" if self.path.exists() else "w+b")  # noqa: SIM115 - closed on exit
            if self.path.stat().st_size > keep_bytes:
                self._file.truncate(keep_bytes)
            self._file.seek(keep_bytes)
            write_whole(marker, settings + "\n")
        except BaseException:
            self._lock.release()
            raise

    def _keep(self, marker: Path, settings: str, model_id: str, items: Sequence[Item]) -> tuple[int, int]:
        """How many answers, and bytes, of the file that is there can stay."""
        if not self.path.is_file():
            return 0, 0
        same = marker.read_text().strip() == settings if marker.is_file() else True
        lines = _whole_lines(self.path)[: len(items)] if same else []
        if not all(_answers(line, item, model_id) for line, item in zip(lines, items, strict=False)):
            lines = []
        if lines:
            logger.warning("%s: %d answers kept, %d to go", self.path, len(lines), len(items) - len(lines))
        elif self.path.stat().st_size:
            logger.warning("%s holds answers of another run, which are overwritten", self.path)
        return len(lines), sum(len(line) for line in lines)

    def write(self, answers: Sequence[dict[str, Any]]) -> None:
        """Append answers, and hand them to the system at once."""
        try:
            for answer in answers:
                self._file.write(json.dumps(answer).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            message = f"{os.strerror(error.errno or 0)}; earlier answers are kept, and a new run goes on"
            raise OSError(error.errno, message, str(self.path)) from error

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(self, *exception) -> None:
        try:
            self._file.close()
        except OSError:
            if exception[0] is None:  # a full disk was reported already
                raise
        finally:
            self._lock.release()


def _whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _answers(line: bytes, item: Item, model_id: str) -> bool:
    """Whether a line is this model's answer to this question."""
    try:
        answer = json.loads(line)
        return answer["model_id"] == model_id and item.head.items() <= answer.items()
    except (ValueError, KeyError, TypeError):
        return False
