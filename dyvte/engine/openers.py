"""Which code opens a model: one function per family, found by name, so that nothing here imports a family.

An installed package adds families, or replaces one, with an entry point of the group ``dyvte.models``:

    [project.entry-points."dyvte.models"]
    llava = "llava.chat_model:open_chat_model"
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable

from dyvte.engine.model import ChatModel, ModelOptions

GROUP = "dyvte.models"
SHIPPED = {"llava": "llava.chat_model:open_chat_model"}
"""The families beside this package, found in a checkout that is not installed as well."""

Opener = Callable[[ModelOptions], ChatModel]


def find_opener(family: str) -> Opener:
    """The function that opens models of a family.

    Raises:
        ValueError: there is no such family.
    """
    installed = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if family in installed:
        return installed[family].load()
    if family not in SHIPPED:
        known = ", ".join(sorted({*SHIPPED, *installed}))
        raise ValueError(f"no model family is named {family!r}; there are {known}")
    module, _, name = SHIPPED[family].partition(":")
    return getattr(importlib.import_module(module), name)


def open_model(options: ModelOptions, family: str = "llava") -> ChatModel:
    """Load a model; its policy is a learned exit where there are gates, else ``NoExit``.

    Raises:
        FileNotFoundError: a file of the model is missing.
        ValueError: there is no such family or template, or the checkpoint is not of this family.
    """
    return find_opener(family)(options)
