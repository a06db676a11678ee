"""What lmms-eval reads at every start (entry-point group ``lmms_eval.models``): names only, nothing heavy."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The model ``dyvte``, in its simple and its chat form; see :mod:`dyvte.plugins.lmms`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        "dyvte", simple_class_path="dyvte.plugins.lmms.Dyvte", chat_class_path="dyvte.plugins.lmms.DyvteChat"
    )
