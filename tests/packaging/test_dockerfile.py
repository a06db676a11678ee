"""What the Dockerfile copies, runs and installs is there; the image itself is not built here."""

from __future__ import annotations

import re
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_files_and_scripts_exist():
    copied = [source for line in re.findall(r"^COPY (.+)", TEXT, re.M) for source in line.split()[:-1]]
    scripts = re.findall(r"\b(?:bash )(scripts/\S+)", TEXT)
    assert len(copied) > 5 and len(scripts) > 1
    assert not [name for name in copied + scripts if not (ROOT / name).exists()]


def test_extras_and_the_command_are_the_projects():
    (extras,) = re.findall(r"^RUN bash scripts/setup\.sh (\S+)", TEXT, re.M)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    (command,) = re.findall(r'^CMD \["(\w+)"', TEXT, re.M)
    assert command in PROJECT["scripts"]


def test_setup_needs_nothing_that_is_copied_after_it():
    before = TEXT[: TEXT.index("RUN bash scripts/setup.sh")]
    needed = {"pyproject.toml", "constraints.txt", "scripts/setup.sh", PROJECT["readme"]}
    needed |= {*PROJECT["license-files"], "dyvte/__init__.py", "llava/__init__.py"}
    assert not [name for name in needed if name not in before]


def test_the_context_leaves_out_what_git_ignores_and_keeps_what_it_tracks():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    tracked = ("dyvte", "llava", "scripts", "playground/tiny", "constraints.txt", "README.md", ".git")
    assert not [name for name in tracked if name in ignored]
    assert {"checkpoints", "outputs", "playground/data", ".venv*"} <= set(ignored)
