"""The pages say what is there: links, files, modules, commands, Python snippets."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.fixtures.scripts import script

ROOT = Path(__file__).parents[2]
write_index = script("write_index")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "playground/tiny/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
MODULE = re.compile(r"python -m ((?:dyvte|llava)[\w.]*)")
FILE = re.compile(r"`((?:dyvte|llava|scripts|tests|docs|examples|playground)/[\w./-]+)`")


@pytest.fixture(params=PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def page(request) -> Path:
    return request.param


def test_files_of_the_core_and_commands_are_indexed():
    text = write_index.PAGE.read_text(encoding="utf-8")
    assert write_index.written(text) == text, "run python scripts/write_index.py"


def test_links_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not link.startswith("http")]
    missing = [link for link in links if not (page.parent / link).exists()]
    given = re.findall(r"`([\w./]+)`:\n\n```", text)  # files that the page tells to write
    missing += [
        name
        for name in FILE.findall(text)
        if not name.startswith("playground/data")
        and "NAME" not in name
        and name not in given
        and not _exists(name)
    ]
    assert not missing


def _exists(name: str) -> bool:
    return (ROOT / name).exists() or (ROOT / name).with_suffix(".py").exists()


def test_commands_exist(page):
    named = {name.rstrip(".") for name in MODULE.findall(page.read_text(encoding="utf-8"))}
    assert named <= set(write_index.commands())


def test_python_snippets_compile(page):
    for snippet in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        ast.parse(snippet)


def test_the_readmes_question_is_answered(monkeypatch, capsys):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    (asking,) = [snippet for snippet in snippets if "What digit is red?" in snippet]
    monkeypatch.chdir(ROOT)
    exec(compile(asking, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 4
