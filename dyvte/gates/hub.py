"""Gates on the Hugging Face hub: ``org/name`` or ``org/name@revision`` wherever a folder of gates may stand.

    python -m dyvte.gates.hub org/name@v1                # downloads the two files of gates and prints their folder

Cache, offline mode, proxies and token are those of ``huggingface_hub``. The folder in its cache names repository and
commit, which is how reports get them (:func:`hub_name`).

Called by :mod:`dyvte.bench`, :mod:`dyvte.engine`, :mod:`dyvte.gates`, :mod:`dyvte.reproduce`, :mod:`dyvte.study` and
:mod:`llava.chat_model`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dyvte.cli import run
from dyvte.gates.card import REPOSITORY
from dyvte.gates.files import DESCRIPTION, WEIGHTS

FILES = [WEIGHTS, DESCRIPTION]
NAME = re.compile(rf"({REPOSITORY.pattern})(?:@(\S+))?", re.ASCII)
_TOLD = 300
"""Characters of a message of the hub that are told."""


def gates_folder(
    place: str | Path,
    *,
    revision: str | None = None,
    **download: Any,
) -> Path:
    """The folder of gates: ``place`` itself, or what was downloaded where it is no folder but a name on the hub.

    Only the two files of gates are downloaded. Without a connection, what is in the cache is taken.

    Args:
        place: folder, ``org/name`` or ``org/name@revision``; a folder wins over a name.
        revision: branch, tag or commit.
        download: further arguments of ``huggingface_hub.snapshot_download``.

    Raises:
        FileNotFoundError: there is no such repository or revision, it holds no gates, or the hub cannot be reached
            and the cache does not have them.
        OSError: the hub refuses, for another reason.
        ValueError: there are two revisions.
    """
    folder = Path(place).expanduser()
    match = None if folder.exists() else NAME.fullmatch(str(place))
    if match is None:
        return folder
    if match[2] and revision:
        raise ValueError(f"gates {place}: a second revision, {revision}, is given; leave one of them out")
    name, revision = match[1], revision or match[2]
    with hub_errors(name, revision, f"{place} is no folder here, and "):
        found = snapshot_download(name, revision=revision, allow_patterns=FILES, **download)
    if missing := [file for file in FILES if not (Path(found) / file).is_file()]:
        raise FileNotFoundError(
            f"the repository {name} on the hub holds no gates ({' and '.join(missing)} missing); gates inside a "
            f"checkpoint are not looked for there: download it (hf download {name}) and name the folder"
        )
    return Path(found)


def hub_name(folder: str | Path) -> str | None:
    """``org/name@commit`` of a folder of the hub's cache; None for other folders."""
    folder = Path(folder)
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return f"{repository.removeprefix('models--').replace('--', '/')}@{folder.name}"


@contextmanager
def hub_errors(name: str, revision: str | None, before: str = "") -> Generator[None]:
    """What ``huggingface_hub`` raises in the block becomes one line that names the repository.

    Raises:
        FileNotFoundError, OSError: instead of what was raised.
    """
    hub, access = constants.ENDPOINT, "log in with hf auth login, or set HF_TOKEN"
    try:
        yield
    except Exception as error:  # connections fail with exceptions of the HTTP library, which changes
        kind: type[OSError] = FileNotFoundError
        if isinstance(error, GatedRepoError):
            kind, told = OSError, f"{hub}/{name} asks for consent to its terms: give it there, and {access}"
        elif isinstance(error, RepositoryNotFoundError):
            told = f"there is no repository {name} on {hub}; if it is private, {access}"
        elif isinstance(error, RevisionNotFoundError):
            told = f"the repository {name} on {hub} has no revision {revision}"
        elif isinstance(error, LocalEntryNotFoundError):
            at = f"{name}@{revision}" if revision else name
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{hub} was not reached"
            told = f"gates {at} are not in the cache {constants.HF_HUB_CACHE} ({why})"
        else:
            line = " ".join(str(error).split())[:_TOLD]
            kind, told = OSError, f"{hub}/{name}: {line or type(error).__name__}"
        raise kind(f"{before}{told}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.gates.hub", description="Download gates of the hub and print their folder."
    )
    parser.add_argument("gates", help="org/name or org/name@revision; a folder is printed as it is")
    run(parser, lambda args: sys.stdout.write(f"{gates_folder(args.gates)}\n"), argv)


if __name__ == "__main__":
    main()
