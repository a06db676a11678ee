"""One writer for each output folder, and workers that do not outlive what started them.

Called by :mod:`dyvte.gates.fit` and :mod:`llava.train.train`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dyvte.gates.options import TrainingArguments

LOCK = ".lock"
WAIT = 5.0
"""Seconds to wait for a lock: workers whose launcher was killed hold it until they notice."""


@contextmanager
def locked(folder: str | Path) -> Generator[None]:
    """Hold a folder, which is made where it is missing, against other runs.

    Raises:
        ValueError: another process writes to it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=WAIT):
            yield
    except Timeout:
        raise ValueError(f"another run is writing {folder}; wait for it, or stop it") from None


@contextmanager
def only_run(args: TrainingArguments) -> Generator[None]:
    """Hold the output folder of a training run; its processes end when the launcher that started them is killed."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # by hand, it may outlive its shell
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if args.process_index != 0:
        yield
        return
    with locked(args.output_dir or "."):
        yield


def _end_with(parent: int) -> None:
    """End this process at once when its parent is another one than it was; what it writes is whole or not there."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
