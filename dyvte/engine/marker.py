"""What a run's answers depend on, kept in a hidden file beside them: only the same run goes on with a file, and only
shards of one run are merged.

Called by :mod:`dyvte.engine.answers_file`, :mod:`dyvte.engine.shards` and :mod:`dyvte.study.run`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dyvte.io import read_json_object, write_json

SHARD = "chunk_idx"
"""The one setting in which shards of a run differ."""


@dataclass(frozen=True)
class Run:
    """A run that writes one file of answers.

    Attributes:
        settings: flags as text, and digests of files.
        questions: how many answers the file will hold.
    """

    settings: Mapping[str, str]
    questions: int

    @property
    def short_name(self) -> str:
        """Eight digits that another run does not have."""
        return digest_of(self.settings)[:8]

    @property
    def without_shard(self) -> dict[str, str]:
        """The settings that all shards share."""
        return {name: value for name, value in self.settings.items() if name != SHARD}

    def write(self, answers: Path) -> None:
        """Write the marker of a file of answers, whole or not at all."""
        write_json(marker_of(answers), asdict(self))


def digest_of(settings: Mapping[str, str]) -> str:
    """One digest of all settings."""
    return hashlib.sha256(json.dumps(sorted(settings.items())).encode()).hexdigest()


def marker_of(answers: Path) -> Path:
    """Where the marker of a file of answers is."""
    return answers.with_name(f".{answers.name}.run")


def read_run(answers: Path) -> Run | None:
    """The run that a file of answers comes from; None where that is not known."""
    try:
        content = read_json_object(marker_of(answers))
        settings, questions = content["settings"], content["questions"]
        return Run({str(name): str(value) for name, value in settings.items()}, int(questions))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing, empty, or of an older version


def difference(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """The names of the settings that differ."""
    names = sorted({*one, *other})
    return ", ".join(name for name in names if one.get(name) != other.get(name))
