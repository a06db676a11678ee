"""Which part may import which: docs/layout.md draws it, and the method knows no model, no training and no study."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def drawn_parts() -> list[list[str]]:
    """The drawing in docs/layout.md: rows of folders (or modules), each of which imports only rows below."""
    page = (ROOT / "docs/layout.md").read_text(encoding="utf-8")
    drawing = page.split("## Which part may import which")[1].split("```text\n")[1].split("```")[0]
    return [
        re.findall(r"(?:llava|dyvte(?:/\w+)?)(?=\s|$)", row.split("   ")[0] if "LLaVA" in row else row)
        for row in drawing.splitlines()
    ]


def imported(path: Path) -> set[str]:
    """All modules that a file imports, also inside functions, but not those that only type checkers import."""
    names, nodes = set(), [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names.add(node.module)
    return names


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py")) or [(ROOT / folder).with_suffix(".py")]


PARTS = drawn_parts()


def test_every_part_is_drawn():
    drawn = {part for row in PARTS for part in row}
    parts = {f"dyvte/{p.stem}" for p in (ROOT / "dyvte").iterdir() if not p.name.startswith("__")}
    assert drawn == parts | {"llava"}


@pytest.mark.parametrize(
    ("above", "part"),
    [(PARTS[:i], part) for i, row in enumerate(PARTS) for part in row],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_imports_point_down(above, part):
    forbidden = tuple(other.replace("/", ".") for row in above for other in row)
    for path in files(part):
        wrong = [
            name for name in imported(path) if any(name == f or name.startswith(f + ".") for f in forbidden)
        ]
        assert not wrong, path


@pytest.mark.parametrize("path", files("llava/model"), ids=lambda p: str(p.relative_to(ROOT)))
def test_models_know_no_training(path):
    above = ("llava.train", "llava.eval", "llava.serve")
    assert not [name for name in imported(path) if name.startswith(above)]


@pytest.mark.parametrize("path", files("dyvte/decoding"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_loop_knows_no_method(path):
    assert not [name for name in imported(path) if name.startswith(("dyvte.gates", "dyvte.reduction"))]


@pytest.mark.parametrize("path", files("dyvte"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_knows_no_llava(path):
    """No import, and no module's name to import later but in the list of model families."""
    assert not [name for name in imported(path) if name.split(".")[0] == "llava"]
    texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    named = [text for text in texts if isinstance(text, str) and re.fullmatch(r"llava(\.\w+)+(:\w+)?", text)]
    assert named == (["llava.chat_model:open_chat_model"] if path.name == "openers.py" else [])


def module_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__main__")


@functools.cache
def importers() -> dict[str, set[str]]:
    """Module -> the modules that import it or a name of it, also for type checkers only."""
    found: dict[str, set[str]] = {}
    for path in [*files("dyvte"), *files("llava"), *ROOT.glob("scripts/*.py"), ROOT / "init_weight.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for name in names:
                found.setdefault(name, set()).add(module_of(path))
    return found


@pytest.mark.parametrize("path", [*files("dyvte"), *files("llava")], ids=lambda p: str(p.relative_to(ROOT)))
def test_callers_that_a_docstring_names_call(path):
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    said = re.search(r"Called (?:by|from|throughout) (:mod:.*?)\.(?:\s|$)", doc, re.DOTALL)
    named = re.findall(r":mod:`([\w.]+)`", said[1]) if said else []
    callers = importers().get(module_of(path), set())
    assert all(any(f"{caller}.".startswith(f"{name}.") for caller in callers) for name in named)
