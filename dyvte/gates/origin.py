"""Where gates come from: the model they belong to, and the data they were trained on.

Called from most of the project.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainedOn:
    """Training data: its SHA-256 (:func:`dyvte.engine.instructions.data_digest`) and number of samples."""

    sha256: str
    samples: int


@dataclass(frozen=True)
class Origin:
    """The fields of ``gates.json`` that say where gates come from; None where that is not known.

    Attributes:
        base_model: name of the model.
        base_sha256: SHA-256 of its weights (:func:`dyvte.provenance.checkpoint_digest`).
        model_family: its ``model_type``.
    """

    base_model: str | None = None
    base_sha256: str | None = None
    model_family: str | None = None
    trained_on: TrainedOn | None = None

    @classmethod
    def from_dict(cls, described: dict[str, Any]) -> Origin:
        """From a larger dictionary, whose other keys are ignored."""
        known = {field.name: described.get(field.name) for field in fields(cls)}
        trained_on = known.pop("trained_on")
        return cls(**known, trained_on=TrainedOn(**trained_on) if trained_on else None)


def short_name(model_path: str) -> str:
    """A model's name without folders of this machine: a Hub id as it is, of a path its last part."""
    path = Path(model_path)
    return path.resolve().name if path.is_dir() else model_path
