"""What a command says when the package of an extra is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dyvte.cli import MissingExtra, extra, needs

COMMAND = """
from dyvte.cli import extra

with extra("study"):
    import a_package_that_nobody_has
"""


def test_a_missing_package_names_its_extra():
    with pytest.raises(MissingExtra, match=r"nobody_has is not installed.*pip install 'dyvte\[study\]'"):
        needs("a_package_that_nobody_has.part", "study")
    with pytest.raises(MissingExtra, match=r"dyvte\[eval\]"), extra("eval"):
        import a_package_that_nobody_has  # noqa: F401


def test_a_missing_module_of_the_project_is_a_defect():
    with pytest.raises(ModuleNotFoundError) as caught, extra("study"):
        import dyvte.no_such_module  # noqa: F401
    assert not isinstance(caught.value, MissingExtra)


def test_a_command_ends_with_one_line_though_the_import_stands_at_its_top(tmp_path):
    package = tmp_path / "llava"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "command.py").write_text(COMMAND)
    # a package of the project's name, in front of the real one, so that the command counts as the project's own
    done = subprocess.run(
        [sys.executable, "-m", "llava.command"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == (
        "a_package_that_nobody_has is not installed; it comes with the extra 'study': pip install 'dyvte[study]'\n"
    )


def test_a_program_that_imports_the_package_keeps_its_tracebacks(tmp_path):
    (tmp_path / "program.py").write_text(COMMAND)
    done = subprocess.run(
        [sys.executable, "-m", "program"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Traceback" in done.stderr and "MissingExtra" in done.stderr
