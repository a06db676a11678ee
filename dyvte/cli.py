"""What all command lines share: errors that a person can put right in one line, and extras named when missing."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def run(
    parser: argparse.ArgumentParser,
    action: Callable[[argparse.Namespace], Any],
    argv: Sequence[str] | None = None,
) -> None:
    """Parse a command line and run ``action`` on it.

    ValueError, OSError and a missing extra end the process with one line on stderr and exit code 1; Ctrl-C with 130.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        action(args)


class one_line_errors:  # noqa: N801 - reads as a statement
    """``with one_line_errors("python -m ..."):`` for command lines that argparse does not parse."""

    def __init__(self, prog: str) -> None:
        self.prog = prog

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, (ValueError, OSError, MissingExtra)):
            sys.exit(f"{self.prog}: {error}")
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)


class MissingExtra(ImportError):
    """A package of an extra is needed and not installed; the message says which to install."""


def needs(module: str, extra: str) -> ModuleType:
    """Import a module that an extra of this project installs.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise MissingExtra(
            f"{error.name} is not installed; it comes with the extra {extra!r}: pip install 'dyvte[{extra}]'"
        ) from None
