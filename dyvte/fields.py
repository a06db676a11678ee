"""What fields of JSON files must be: checked where a file is read, and told with the file's and the field's name.

Called from :mod:`dyvte.engine`, :mod:`dyvte.gates`, :mod:`init_weight` and :mod:`llava.model`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_LAYERS, WIDEST = 10_000, 1_000_000
"""Layers of a model, and sizes of its states, that nobody has reached: more is a broken file."""
_SHOWN = 60
"""Characters of a wrong value that are told."""


@dataclass(frozen=True)
class Rule:
    """What a value must be.

    Attributes:
        words: completes "must be".
        holds: whether a value is that.
    """

    words: str
    holds: Callable[[Any], bool]


TEXT = Rule("text", lambda value: isinstance(value, str) and "\0" not in value)
FLAG = Rule("true or false", lambda value: isinstance(value, bool))


def whole(low: int, high: int) -> Rule:
    """A whole number within these bounds."""
    return Rule(
        f"a whole number from {low} to {high}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
    )


def number(low: float, high: float) -> Rule:
    """A number within these bounds."""
    return Rule(
        f"a number from {low:g} to {high:g}",
        lambda value: (
            isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        ),
    )


def one_of(*values: str) -> Rule:
    """One of some texts."""
    return Rule(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def listed(rule: Rule, length: int | None = None) -> Rule:
    """A list, not empty, of such values."""

    def holds(value: Any) -> bool:
        right = isinstance(value, list) and value and all(rule.holds(part) for part in value)
        return bool(right) and (length is None or len(value) == length)

    return Rule(f"a list of {'' if length is None else f'{length} values, each '}{rule.words}", holds)


def either(first: Rule, second: Rule) -> Rule:
    """One or the other."""
    return Rule(f"{first.words} or {second.words}", lambda value: first.holds(value) or second.holds(value))


def optional(rule: Rule) -> Rule:
    """Such a value, or null, or no such field."""
    return Rule(f"{rule.words}, or null", lambda value: value is None or rule.holds(value))


def record(**rules: Rule) -> Rule:
    """An object with these fields, and maybe others."""
    parts = ", ".join(f"{name} ({rule.words})" for name, rule in rules.items())
    return Rule(
        f"an object with {parts}" if rules else "an object",
        lambda value: (
            isinstance(value, dict) and all(rule.holds(value.get(name)) for name, rule in rules.items())
        ),
    )


_SIZE = optional(either(whole(1, WIDEST), listed(whole(1, WIDEST))))
SIZES = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "projection_dim", "head_dim"), _SIZE),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_channels"), _SIZE),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "depth"), optional(whole(1, MOST_LAYERS))),
    **dict.fromkeys(("image_size", "patch_size"), _SIZE),
    "vocab_size": optional(whole(1, 100 * WIDEST)),
    "max_position_embeddings": optional(whole(1, 10**9)),
}
"""Fields of models' configs that say how large a model is."""


def check_fields(fields: Mapping[str, Any], rules: Mapping[str, Rule], path: str | Path) -> None:
    """Raise ValueError for the first field of ``path`` that breaks its rule; one without a rule may be anything."""
    for name, rule in rules.items():
        value = fields.get(name)
        if not rule.holds(value):
            told = "is missing" if name not in fields else f"is {_shown(value)}"
            raise ValueError(f"{path}: {name} {told}; it must be {rule.words}")


def check_sizes(described: Mapping[str, Any], path: str | Path) -> None:
    """As :func:`check_fields` with :data:`SIZES`, for a model's config and the configs of its parts, before memory is
    taken for a model of these sizes.
    """
    check_fields(described, SIZES, path)
    for name, part in described.items():
        if name.endswith("_config") and isinstance(part, dict):
            check_sizes(part, f"{path}, {name}")


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
