"""Settings of methods as text, ``key=value``, for command lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from dyvte.decoding.policy import Policy
from dyvte.reduction import REDUCTIONS


def make_reductions(names: Sequence[str], settings: Sequence[str]) -> dict[str, Policy]:
    """The methods of these names.

    Args:
        names: keys of ``REDUCTIONS``.
        settings: ``key=value`` each, or ``name.key=value`` where several of the methods have the key. What is not
            given keeps its default.

    Raises:
        ValueError: a setting is not ``key=value``, given twice, unknown, unclear between methods, or of the wrong
            type; or a method refuses its value.
    """
    given: dict[str, dict[str, Any]] = {name: {} for name in names}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals and text):
            raise ValueError(f"a method's setting must be key=value, got {setting!r}")
        name, key = _owner(names, key)
        if key in given[name]:
            raise ValueError(f"{name}'s {key} is given twice")
        given[name][key] = _value(name, key, text)
    return {name: REDUCTIONS[name](**values) for name, values in given.items()}


def _owner(names: Sequence[str], key: str) -> tuple[str, str]:
    """The method that a key belongs to, and the key without the method's name."""
    prefix, dot, bare = key.partition(".")
    candidates = [prefix] if dot else list(names)
    bare = bare if dot else key
    owners = [name for name in candidates if name in names and bare in get_type_hints(REDUCTIONS[name])]
    if len(owners) == 1:
        return owners[0], bare
    if owners:
        either = " or ".join(f"{name}.{bare}" for name in owners)
        raise ValueError(f"setting {key!r} is unclear: write {either}")
    known = "; ".join(f"{name} has {_described(name)}" for name in names)
    raise ValueError(f"unknown setting {key!r}: {known or 'none of the methods has settings'}")


def _described(name: str) -> str:
    """A method's settings with their defaults."""
    return ", ".join(f"{f.name}={f.default}" for f in fields(REDUCTIONS[name]) if f.default is not MISSING)


def _value(name: str, key: str, text: str) -> int | float | None:
    """Text as the type of the method's field: int, float, or either of them with ``none``."""
    hint = get_type_hints(REDUCTIONS[name])[key]
    kinds = get_args(hint) or (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    try:
        return kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{name}'s {key} must be {wanted}, got {text!r}") from None
