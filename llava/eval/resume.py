"""An answers file that an interrupted run leaves usable, and that only the same run goes on with."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_NOT_SETTINGS = ("answers_file", "device")


def run_settings(args: argparse.Namespace) -> str:
    """A digest of all that answers depend on: the flags, and the files (by size and time) they point at."""
    described: list[Any] = sorted((k, str(v)) for k, v in vars(args).items() if k not in _NOT_SETTINGS)
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
    """

    def __init__(self, path: str, settings: str, model_id: str, rows: Sequence[dict[str, Any]]) -> None:
        self.path = Path(path).expanduser()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        marker = self.path.with_name(f".{self.path.name}.run")
        self.kept = 0
        keep_bytes = 0
        if self.path.is_file():
            same = marker.read_text().strip() == settings if marker.is_file() else True
            lines = _whole_lines(self.path) if same else []
            if all(_answers(line, row, model_id) for line, row in zip(lines, rows, strict=False)):
                lines = lines[: len(rows)]
                self.kept, keep_bytes = len(lines), sum(len(line) for line in lines)
            if self.kept:
                logger.warning("%s: %d answers are kept, %d to go", path, self.kept, len(rows) - self.kept)
            elif self.path.stat().st_size:
                logger.warning("%s holds answers of another run, which are overwritten", path)
        self._file = open(self.path, "r+b" if self.path.exists() else "w+b")  # noqa: SIM115 - closed on exit
        self._file.truncate(keep_bytes)
        self._file.seek(keep_bytes)
        marker.write_text(settings + "\n")

    def write(self, answers: Sequence[dict[str, Any]]) -> None:
        """Append answers, and hand them to the system at once."""
        for answer in answers:
            self._file.write(json.dumps(answer).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()


def _whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _answers(line: bytes, row: dict[str, Any], model_id: str) -> bool:
    """Whether a line is this model's answer to this question."""
    try:
        answer = json.loads(line)
        found = answer["question_id"], answer["prompt"], answer["model_id"]
    except (ValueError, KeyError, TypeError):
        return False
    return found == (row["question_id"], row.get("text"), model_id)
