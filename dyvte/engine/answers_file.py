"""An answers file that an interrupted run leaves usable, and that only the same run goes on with.

Called by :mod:`dyvte.engine.run`, :mod:`dyvte.study.fixed_exits` and :mod:`dyvte.study.run`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from dyvte.engine.marker import Run, difference, marker_of, read_run
from dyvte.engine.model import model_name_of, resolved_dtype
from dyvte.engine.questions import Item
from dyvte.gates.files import DESCRIPTION, gates_digest, has_gates
from dyvte.io import locked, move_aside
from dyvte.provenance import checkpoint_folder, file_sha256, loaded_digest

logger = logging.getLogger(__name__)

_NOT_SETTINGS = ("answers_file", "device", "dtype", "workers", "shard_model")
_FILES = ("model_path", "model_base", "gates", "question_file")
"""Flags that count by what they point at, whatever the path."""


def describe_run(args: argparse.Namespace) -> dict[str, str]:
    """All that answers depend on: the flags, the precision that they mean on this machine, and digests of the files
    that are loaded. Other files beside those, and other spellings of a path, change nothing.

    Raises:
        FileNotFoundError: model or gates are not there.
        ValueError: a file that describes them is broken.
    """
    flags = {k: v for k, v in vars(args).items() if v is not None and k not in (*_NOT_SETTINGS, *_FILES)}
    described = {name: _as_text(name, value) for name, value in flags.items()}
    device, dtype = getattr(args, "device", None) or "cuda", getattr(args, "dtype", None) or "auto"
    described["dtype"] = resolved_dtype(device, dtype)
    described["model_name"] = model_name_of(args.model_path)
    described["model"] = loaded_digest(args.model_path, args.model_base)
    folder = Path(args.gates).expanduser() if args.gates else checkpoint_folder(args.model_path)
    if args.gates or has_gates(folder):
        description = folder / DESCRIPTION
        told = file_sha256(description) if description.is_file() else ""
        described["gates"] = f"{gates_digest(folder)} {told}".strip()
    described["question_file"] = file_sha256(Path(args.question_file).expanduser())
    return described


def has_checkpoints(args: argparse.Namespace) -> bool:
    """Whether the model, and its base, are on this machine."""
    try:
        for path in (args.model_path, args.model_base):
            if path:
                checkpoint_folder(path)
    except FileNotFoundError:
        return False
    return True


def _as_text(name: str, value: Any) -> str:
    """A flag's value; a path in its one spelling."""
    if isinstance(value, Path) or (name == "image_folder" and value):
        return str(Path(value).expanduser().resolve())
    return str(value)


class AnswersFile:
    """A JSON-lines file of answers in the order of the questions; a context manager.

    Answers that are there already are kept when they come from a run with the same settings, which a hidden file
    beside them holds; a half-written last line is cut off. Others are never overwritten: when the first answer is
    written, their file gets another name. Until then nothing that is there changes.

    Args:
        settings: what the answers depend on, as :func:`describe_run` tells.

    Attributes:
        kept: how many of the questions have answers already.

    Raises:
        OSError: the file cannot be written; the message names it.
        ValueError: another process is writing it.
    """

    def __init__(self, path: str, settings: Mapping[str, str], model_id: str, items: Sequence[Item]) -> None:
        self.path = Path(path).expanduser()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._held = ExitStack()
        self._held.enter_context(
            locked(self.path.with_name(f".{self.path.name}.lock"), f"writing {self.path}")
        )
        try:
            self._run = Run(settings, len(items))
            self._file: BinaryIO | None = None
            self._other = self._other_origin(read_run(self.path))
            self.kept, self._keep_bytes = (0, 0) if self._other else self._keep(model_id, items)
        except BaseException:
            self._held.close()
            raise

    def _other_origin(self, run: Run | None) -> str:
        """Why answers that are there cannot stay; empty when they can, or when there are none."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return ""
        if run is None:
            return f"answers of a run that nobody knows ({marker_of(self.path)} is missing or broken)"
        if unlike := difference(run.settings, self._run.settings):
            return f"answers of another run ({unlike} differ)"
        return ""

    def _keep(self, model_id: str, items: Sequence[Item]) -> tuple[int, int]:
        """How many answers, and bytes, of the file that is there can stay."""
        if not self.path.is_file():
            return 0, 0
        kept = size = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if kept == len(items) or not _answers(line, items[kept], model_id):
                    self._other = f"a line that is no answer of this run (line {kept + 1})"
                    return 0, 0
                kept, size = kept + 1, size + len(line)
        if kept:
            logger.warning("%s: %d answers kept, %d to go", self.path, kept, len(items) - kept)
        return kept, size

    def _begin(self) -> BinaryIO:
        """Open the file behind the answers that stay; others are moved aside first."""
        if self._other:
            self._set_aside(self._other)
        self._run.write(self.path)
        file = self.path.open("r+b" if self.path.exists() else "w+b")  # noqa: SIM115 - closed on exit
        if self.path.stat().st_size > self._keep_bytes:
            file.truncate(self._keep_bytes)
        file.seek(self._keep_bytes)
        return file

    def _set_aside(self, why: str) -> None:
        run = read_run(self.path)
        kept_as = move_aside(self.path, run.short_name if run is not None else "unknown")
        if run is not None:
            run.write(kept_as)
        logger.warning("%s held %s, which are now %s", self.path, why, kept_as)

    def write(self, answers: Sequence[dict[str, Any]]) -> None:
        """Append answers, and hand them to the system at once."""
        try:
            if self._file is None:
                self._file = self._begin()
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
            if self._file is None and exception[0] is None:
                self._file = self._begin()  # of no questions, or of none that was left
            if self._file is not None:
                self._file.close()
        except OSError:
            if exception[0] is None:  # a full disk was reported already
                raise
        finally:
            self._held.close()


def _answers(line: bytes, item: Item, model_id: str) -> bool:
    """Whether a line is this model's answer to this question."""
    try:
        answer = json.loads(line)
        return answer["model_id"] == model_id and item.head.items() <= answer.items()
    except (ValueError, KeyError, TypeError):
        return False
