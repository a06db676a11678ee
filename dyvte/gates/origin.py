"""Where gates come from: the model they belong to, and the data they were trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
    def from_dict(cls, fields: dict[str, Any]) -> Origin:
        """From a larger dictionary, whose other keys are ignored."""
        trained_on = fields.get("trained_on")
        return cls(
            base_model=fields.get("base_model"),
            base_sha256=fields.get("base_sha256"),
            model_family=fields.get("model_family"),
            trained_on=TrainedOn(**trained_on) if trained_on else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """What is known, for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def short_name(model_path: str) -> str:
    """A model's name without folders of this machine: a Hub id as it is, of a path its last part."""
    path = Path(model_path)
    return path.resolve().name if path.is_dir() else model_path
