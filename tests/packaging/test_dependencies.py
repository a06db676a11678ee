"""Every import is declared: in the core, or in the extra that the import names."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = ("dyvte", "llava")
NOT_INSTALLED = {"flash_attn": "flash-attn", "bitsandbytes": "bitsandbytes", "av": "av"}
"""Modules of extras that tests run without, which the installed packages therefore cannot name."""
PINNED = "dev"
"""The extra with all that tests need."""
HARNESSES = {"lmms_eval", "vlmeval"}
"""What runs dyvte/plugins, each in an environment of its own."""


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", distribution)[0]).lower()


def declared(extra: str | None) -> set[str]:
    """Distributions of the core, and of an extra with the extras that it includes."""
    found = {normal(line) for line in PROJECT["dependencies"]}
    for line in PROJECT["optional-dependencies"][extra] if extra else ():
        if inner := re.match(r"dyvte\[(.+)\]", line):
            for name in inner[1].split(","):
                found |= declared(name)
        else:
            found.add(normal(line))
    return found


def third_party(path: Path) -> Iterator[tuple[str, str | None, int]]:
    """(module, extra named around the import, line) of each import from outside the project."""
    stack: list[tuple[ast.AST, str | None]] = [(ast.parse(path.read_text(encoding="utf-8")), None)]
    while stack:
        node, extra = stack.pop()
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue  # never imported
        elif isinstance(node, ast.With):
            for item in node.items:
                if name := called(item.context_expr, "extra"):
                    extra = name[0]
        elif name := called(node, "needs"):
            yield name[0].partition(".")[0], name[1], node.lineno
        for module in modules:
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in OWN:
                yield top, extra, node.lineno
        stack += [(child, extra) for child in ast.iter_child_nodes(node)]


def called(node: ast.AST, function: str) -> list[str] | None:
    """The literal arguments of a call of this function; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function:
        return [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    return None


@pytest.mark.parametrize("package", OWN)
def test_every_import_is_declared(package):
    distributions = importlib.metadata.packages_distributions()
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for module, extra, line in third_party(path):
            if module in HARNESSES and path.parent.name == "plugins":
                continue
            names = [normal(name) for name in distributions.get(module, [NOT_INSTALLED.get(module, module)])]
            if not declared(extra).intersection(names):
                where = f"the extra {extra!r}" if extra else 'the core; put `with extra("..."):` around it'
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {module} is not declared in {where}")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_declared_in_vain():
    """Each distribution of the core is imported, or needed by one that is."""
    distributions = importlib.metadata.packages_distributions()
    used = {
        normal(name)
        for package in OWN
        for path in (ROOT / package).rglob("*.py")
        for module, extra, _ in third_party(path)
        if extra is None
        for name in distributions.get(module, [])
    }
    assert declared(None) - used == {"protobuf"}  # sentencepiece needs it


def test_every_installed_dependency_is_pinned():
    """Also those of dependencies: else an environment is not that of the tests, and may get any version."""
    pins: dict[str, SpecifierSet] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate():
                pins[normal(pin.name)] = pin.specifier
    left, seen, wrong = [Requirement(f"dyvte[{PINNED}]")], set[str](), []
    while left:
        asked = left.pop()
        name = normal(asked.name)
        if (key := f"{name}{sorted(asked.extras)}") in seen:
            continue
        seen.add(key)
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in (*OWN, "setuptools") and installed.version not in pins.get(name, SpecifierSet("<0")):
            wrong.append(f"{name} {installed.version}, not {pins.get(name, 'pinned')}")
        for line in installed.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": e}) for e in ("", *asked.extras)
            ):
                left.append(needed)
    assert len(seen) > 50 and not wrong, wrong


def test_the_version_is_that_of_the_package():
    import dyvte

    assert re.fullmatch(r"\d+\.\d+\.\d+", dyvte.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {dyvte.__version__}" in changelog or "## Unreleased" in changelog
    assert f"version: {dyvte.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
