"""The methods by which visual tokens leave, by name: the one list that command lines, records and tables read.

A new method is one file under ``dyvte/reduction`` and one line here. Names are in records and may not change.
:mod:`dyvte.engine.options` makes policies from flags, :mod:`dyvte.report.titles` labels records.

    python -m dyvte.methods              # names, titles, papers and settings
    python -m dyvte.methods check NAME   # exit code 2 and one line where there is no such method
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

if TYPE_CHECKING:
    from dyvte.decoding.policy import Policy
    from dyvte.gates.gate import ExitGates


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: on command lines and in records.
        title: as tables and figures print it.
        paper: where it was published; empty for a plain baseline.
        policy: ``module:class``, imported when needed: listing names does not wait for torch.
    """

    name: str
    title: str
    paper: str
    policy: str

    def load(self) -> Any:
        """The policy's class, a dataclass whose fields are the settings."""
        return pkgutil.resolve_name(self.policy)


METHODS = {
    method.name: method
    for method in (
        Method("none", "Baseline", "", "dyvte.decoding.policy:NoExit"),
        Method("dyvte", "DyVTE", "arXiv:2411.19628", "dyvte.gates.exit:LearnedExit"),
        Method("fixed", "Fixed exit", "", "dyvte.decoding.policy:FixedExit"),
        Method("fastv", "FastV", "arXiv:2403.06764", "dyvte.reduction.fastv:FastV"),
        Method("pooling", "Pooling", "", "dyvte.reduction.pooling:Pooling"),
        Method("pyramiddrop", "PyramidDrop", "arXiv:2410.17247", "dyvte.reduction.pyramiddrop:PyramidDrop"),
        Method("random", "Random dropping", "", "dyvte.reduction.random_drop:RandomDrop"),
        Method("stability", "VisiPruner exit", "arXiv:2510.17205", "dyvte.reduction.stability:StabilityExit"),
        Method("tome", "ToMe", "arXiv:2210.09461", "dyvte.reduction.tome:ToMe"),
        Method("vtw", "VTW", "arXiv:2405.05803", "dyvte.reduction.vtw:VTW"),
    )
}
OWN_FLAGS = ("none", "dyvte", "fixed")
"""Methods whose settings have flags of their own (``--gates``, ``--threshold``, ``--exit-layer``); the others take
``key=value`` settings."""


def parse_method(text: str) -> tuple[str, ...]:
    """The names in a method, or in several joined by ``+``; ValueError when they are unknown or cannot be joined."""
    names = tuple(text.split("+"))
    for name in names:
        if name not in METHODS:
            raise ValueError(f"{name!r} is not one of {', '.join(METHODS)}, or several of them joined by +")
    if len(set(names)) < len(names) or (len(names) > 1 and "none" in names):
        raise ValueError(f"{text!r} joins a method with itself or with none")
    return names


def title(method: str, settings: Mapping[str, str]) -> str:
    """A method's title, with those of a record's settings that distinguish two records of the method.

    Args:
        method: a name, or several joined by ``+``.
        settings: of the record; ``exit_layer``, ``threshold`` and ``method_config`` are read.
    """
    label = " + ".join(_part_title(part, settings) for part in method.split("+"))
    config = settings.get("method_config", "")
    return f"{label} ({', '.join(config.split())})" if config else label


def _part_title(name: str, settings: Mapping[str, str]) -> str:
    if name == "fixed":
        return f"Exit after layer {settings['exit_layer']}"
    threshold = float(settings.get("threshold") or 0.5)
    if name == "dyvte" and threshold != 0.5:
        return f"DyVTE, threshold {threshold:g}"
    return METHODS[name].title if name in METHODS else name


def make_policy(
    names: Sequence[str],
    settings: Sequence[str] = (),
    *,
    gates: ExitGates | None = None,
    threshold: float | None = None,
    exit_layer: int | None = None,
) -> Policy:
    """The policy of a method, or of several that act in this order.

    Args:
        names: see :func:`parse_method`.
        settings: ``key=value`` each, or ``name.key=value`` where several of the methods have the key.
        gates, threshold: of ``dyvte``; the gates' calibrated threshold by default.
        exit_layer: of ``fixed``.

    Raises:
        ValueError: ``dyvte`` lacks gates or ``fixed`` its layer; a setting is not ``key=value``, given twice,
            unknown, ambiguous between methods, or of the wrong type; or a method refuses its value.
    """
    from dyvte.reduction.combine import Combine

    given = _parse_settings([name for name in names if name not in OWN_FLAGS], settings)
    if "dyvte" in names:
        if gates is None:
            raise ValueError("method dyvte needs gates: the checkpoint has none, pass --gates FOLDER")
        given["dyvte"] = {"gates": gates, "threshold": threshold}
    if "fixed" in names:
        if exit_layer is None:
            raise ValueError(f"method {'+'.join(names)} needs --exit-layer")
        given["fixed"] = {"layer": exit_layer}
    policies = tuple(METHODS[name].load()(**given.get(name, {})) for name in names)
    return policies[0] if len(policies) == 1 else Combine(policies)


def _parse_settings(names: Sequence[str], settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By method, its settings as keyword arguments of its policy."""
    given: dict[str, dict[str, Any]] = {name: {} for name in names}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals and text):
            raise ValueError(f"a method's setting must be key=value, got {setting!r}")
        name, key = _method_of(names, key)
        if key in given[name]:
            raise ValueError(f"{name}'s {key} is given twice")
        given[name][key] = _value(name, key, text)
    return given


def _method_of(names: Sequence[str], key: str) -> tuple[str, str]:
    """The method that a key belongs to, and the key without the method's name."""
    prefix, dot, bare = key.partition(".")
    candidates = [prefix] if dot else list(names)
    bare = bare if dot else key
    with_key = [name for name in candidates if name in names and bare in _settings_of(name)]
    if len(with_key) == 1:
        return with_key[0], bare
    if with_key:
        either = " or ".join(f"{name}.{bare}" for name in with_key)
        raise ValueError(f"setting {key!r} is unclear: write {either}")
    known = "; ".join(f"{name} has {described(name)}" for name in names)
    raise ValueError(f"unknown setting {key!r}: {known or 'none of the methods has settings'}")


def _settings_of(name: str) -> dict[str, Any]:
    """The settings of a method and their defaults: the fields of its policy that have one."""
    return {
        field.name: field.default for field in fields(METHODS[name].load()) if field.default is not MISSING
    }


def described(name: str) -> str:
    """The settings of a method with their defaults, as ``key=value``."""
    return ", ".join(f"{key}={default}" for key, default in _settings_of(name).items())


def _value(name: str, key: str, text: str) -> int | float | None:
    """Text as the type of the method's field: int, float, or either of them with ``none``."""
    hint = get_type_hints(METHODS[name].load())[key]
    kinds = get_args(hint) or (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    try:
        return kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{name}'s {key} must be {wanted}, got {text!r}") from None


def main(argv: Sequence[str]) -> None:
    """List the methods, or check a name."""
    if argv[:1] == ["check"] and len(argv) == 2:
        try:
            parse_method(argv[1])
        except ValueError as error:
            sys.stderr.write(f"{error}\n")
            sys.exit(2)
        return
    for method in METHODS.values():
        settings = "" if method.name in OWN_FLAGS else described(method.name)
        sys.stdout.write(f"{method.name:12} {method.title:16} {method.paper:17} {settings}".rstrip() + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
