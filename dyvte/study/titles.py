"""How studies name models and methods in figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_METHODS = {"none": "without exit", "dyvte": "DyVTE", "fixed": "exit after layer {exit_layer}"}


def model_title(model: str) -> str:
    """A checkpoint's name; with its folder's where it is just called "model"."""
    path = Path(model)
    return f"{path.parent.name}/{path.name}" if path.name == "model" else path.name


def method_title(manifest: Mapping[str, str]) -> str:
    """The exit method of a study's manifest."""
    return _METHODS.get(manifest["method"], manifest["method"]).format(**manifest)
