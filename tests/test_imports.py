"""Which part may import which: the method knows nothing of LLaVA, models know nothing of training."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW_LLAVA = ("dyvte/decoding", "dyvte/families", "dyvte/reduction", "dyvte/cost", "dyvte/gates")


def imported(path: Path) -> set[str]:
    """All modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names.add(node.module)
    return names


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(
    "path", [p for f in BELOW_LLAVA for p in files(f)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_method_knows_no_llava(path):
    above = ("llava", "dyvte.benchmarks", "dyvte.study", "dyvte.report", "dyvte.tiny")
    assert not [name for name in imported(path) if name.startswith(above)]


@pytest.mark.parametrize("path", files("llava/model"), ids=lambda p: str(p.relative_to(ROOT)))
def test_models_know_no_training(path):
    above = ("llava.train", "llava.eval", "llava.serve", "dyvte.benchmarks", "dyvte.study", "dyvte.report")
    assert not [name for name in imported(path) if name.startswith(above)]


@pytest.mark.parametrize("path", files("dyvte/decoding"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_loop_knows_no_method(path):
    assert not [name for name in imported(path) if name.startswith(("dyvte.gates", "dyvte.reduction"))]


@pytest.mark.parametrize("path", files("dyvte/report"), ids=lambda p: str(p.relative_to(ROOT)))
def test_reports_know_no_studies(path):
    """Studies use records, tables and figures; the page reads what studies stored."""
    above = ("dyvte.study", "dyvte.bench", "dyvte.reproduce", "dyvte.tiny")
    assert not [
        name for name in imported(path) if name in above or name.startswith(tuple(f"{a}." for a in above))
    ]


@pytest.mark.parametrize("path", files("dyvte"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_knows_no_llava(path):
    """No import, and no module's name to import later but in the list of model families."""
    assert not [name for name in imported(path) if name.split(".")[0] == "llava"]
    texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    named = [text for text in texts if isinstance(text, str) and re.fullmatch(r"llava(\.\w+)+(:\w+)?", text)]
    assert named == (["llava.chat_model:open_chat_model"] if path.name == "openers.py" else [])
