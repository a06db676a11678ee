"""docs/first_change.md: each walkthrough is carried out in a copy of the project, and its tests pass there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTIONS = re.split(r"^## ", (ROOT / "docs/first_change.md").read_text(encoding="utf-8"), flags=re.M)[1:]
WALKTHROUGHS = {text.partition("\n")[0]: text for text in SECTIONS if "```" in text}
# A block, and the file that the line before it ends with; a block without a file is commands.
BLOCK = re.compile(r"(?:`([\w./]+)`:\n\n)?```(\w+)\n(.*?)```", re.S)


def apply(diff: str, file: Path) -> None:
    """Replace the old lines of each part, which must be in the file once, by the new ones."""
    content = file.read_text(encoding="utf-8")
    for part in diff.split("@@\n"):
        lines = part.splitlines(keepends=True)
        old = "".join(line[1:] or "\n" for line in lines if line[0] in " -")
        new = "".join(line[1:] or "\n" for line in lines if line[0] in " +")
        assert content.count(old) == 1, f"{file.name} does not have these lines once:\n{old}"
        content = content.replace(old, new)
    file.write_text(content, encoding="utf-8")


@pytest.mark.parametrize("title", WALKTHROUGHS)
def test_walkthrough(title, tmp_path):
    for folder in ("dyvte", "llava", "scripts", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    commands = []
    for name, language, code in BLOCK.findall(WALKTHROUGHS[title]):
        if language == "diff":
            apply(code, tmp_path / name)
        elif name:
            assert not (tmp_path / name).exists()
            (tmp_path / name).write_text(code, encoding="utf-8")
        else:
            commands.append(code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    (command,) = commands
    done = subprocess.run(
        ["bash", "-ec", command.replace("python", sys.executable)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and re.search(r"\d passed", done.stdout), done.stdout + done.stderr


def test_there_are_three():
    assert list(WALKTHROUGHS) == ["A method", "A model family", "A benchmark"]
