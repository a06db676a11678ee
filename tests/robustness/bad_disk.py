"""A process on a disk that is full, or in folders that may not be written."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dyvte.cli import one_line_errors

_CAPABILITIES_V3, _IGNORES_MODES = 0x20080522, 0b110


def told(action: Callable[[], Any], largest: int | None = None) -> str:
    """Run ``action`` in a process of its own; the one line that it ends with, as a command line tells errors, empty
    where it ends well.

    Args:
        largest: bytes of the largest file that it may write. What does not fit fails as on a full disk, in the middle
            of a write.
    """
    reader, writer = os.pipe()  # not a file, which would be limited too
    if not (process := os.fork()):
        code = 2
        try:
            sys.stdout = sys.stderr = open(writer, "w", closefd=False)  # noqa: SIM115 - of the process
            begin_after_fork()
            _as_anybody()
            if largest is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            with one_line_errors("command"):
                action()
            code = 0
        except SystemExit as end:
            sys.stderr.flush()
            os.write(writer, f"\n{end}".encode())
            code = 1
        except BaseException as error:
            os.write(writer, f"\n{error!r}".encode())
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, errors="replace") as printed:
        last = printed.read().rpartition("\n")[2]
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 1), last
    return last if code else ""


def begin_after_fork() -> None:
    """What a forked process has to do before it uses tqdm and torch."""
    tqdm.set_lock(threading.RLock())  # the default one is shared with processes that may hold it
    # torch makes its pool of threads anew when it is first asked for; of two threads that ask at once, one gets none
    torch.set_num_threads(torch.get_num_threads())


def read_only(folder: Path) -> Path:
    """The folder, in which nothing can be made by :func:`told`."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o500)
    return folder


def _as_anybody() -> None:
    """Root may write anywhere, which this process gives up; others need not."""
    if os.geteuid():
        return
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    sets = (ctypes.c_uint32 * 6)()  # twice: effective, permitted, inheritable
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    sets[0] &= ~_IGNORES_MODES
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
