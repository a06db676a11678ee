"""The git hooks run what continuous integration runs, with the tools of the environment."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.packaging.test_site import ROOT

HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]


def test_the_hooks_are_the_checks_of_ci():
    script = (ROOT / "scripts/test.sh").read_text(encoding="utf-8")
    checks = re.findall(r'"\$bin/(ruff|shellcheck|pyright)"([^\n]*)', script)
    wanted = {f"{tool}{flags}".strip().partition(" --pythonpath")[0] for tool, flags in checks}
    entries = {hook["entry"] for hook in HOOKS}
    assert len(wanted) == 4 and wanted <= entries
    assert any(entry.startswith("python -m pytest") for entry in entries)
    assert all(hook["language"] == "system" for hook in HOOKS)


@pytest.mark.parametrize(
    "hook", [hook for hook in HOOKS if hook["id"] in ("ruff", "format", "index")], ids=str
)
def test_quick_hooks_pass(hook, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    subprocess.run(hook["entry"].split(), cwd=ROOT, check=True)


def test_the_citation_is_of_this_version():
    import dyvte

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["version"] == dyvte.__version__
    (paper,) = citation["references"]
    assert paper["url"].endswith("2411.19628") and all(
        "family-names" in author for author in paper["authors"]
    )
