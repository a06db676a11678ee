"""What all command lines share: errors that a person can put right in one line, and extras named when missing.

Called from most of the project.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import Any

OWN_PACKAGES = ("dyvte", "llava")
command: str | None = None
"""What a person typed in place of ``python -m MODULE``: :mod:`llava.commands` sets it."""


def run(
    parser: argparse.ArgumentParser,
    action: Callable[[argparse.Namespace], Any],
    argv: Sequence[str] | None = None,
) -> None:
    """Parse a command line and run ``action`` on it.

    ValueError, OSError and a missing extra end the process with one line on stderr and exit code 1; Ctrl-C with 130.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    parser.prog = command or parser.prog
    with one_line_errors(parser.prog):
        action(parser.parse_args(words_of(argv)))


def words_of(argv: Sequence[str] | None) -> list[str]:
    """The words of a command line (``sys.argv`` by default), with ``--flag=~/x`` as ``--flag=/home/me/x``: shells put
    a home folder in place of a ``~`` only where a word begins with it.
    """
    given = sys.argv[1:] if argv is None else argv
    return [
        re.sub(r"^(--[\w-]+=)(~.*)", lambda found: found[1] + os.path.expanduser(found[2]), word, flags=re.S)
        for word in given
    ]


@contextmanager
def one_line_errors(prog: str) -> Generator[None]:
    """``with one_line_errors("python -m ..."):`` for command lines that argparse does not parse."""
    prog = command or prog
    try:
        yield
    except (ValueError, OSError, MissingExtra) as error:
        sys.exit(f"{prog}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


class MissingExtra(ImportError):
    """A package of an extra is needed and not installed; the message says which to install."""


@contextmanager
def extra(name: str) -> Generator[None]:
    """``with extra("study"): import jinja2`` marks imports of packages that only an extra installs.

    It also works at the top of a module: where a command of this project is running, a missing package ends it with
    one line instead of a traceback.

    Raises:
        MissingExtra: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OWN_PACKAGES:
            raise
        if _runs_own_command():
            sys.excepthook = _one_line_for_missing_extra
        raise MissingExtra(
            f"{package} is not installed; it comes with the extra {name!r}: pip install 'dyvte[{name}]'"
        ) from None


def needs(module: str, name: str) -> ModuleType:
    """Import a module that the extra ``name`` installs.

    Raises:
        MissingExtra: it is not installed.
    """
    with extra(name):
        return importlib.import_module(module)


def _runs_own_command() -> bool:
    """Whether this process was started by ``python -m`` and a module of this project."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name.partition(".")[0] in OWN_PACKAGES


def _one_line_for_missing_extra(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, MissingExtra):
        sys.stderr.write(f"{error}\n")
    else:
        sys.__excepthook__(kind, error, traceback)
