"""The examples of docs/server.md run as they stand, but for the port."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serve.conftest import serving

PAGE = Path("docs/server.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000/v1"


@pytest.fixture(scope="module")
def address():
    """Of the server that the page starts."""
    flags = re.search(r"^dyvte serve (.+)$", PAGE, re.MULTILINE)[1]
    with serving(flags) as client:
        yield str(client.base_url).rstrip("/")


def example(beginning: str, address: str) -> str:
    """The block of code that begins so."""
    block = re.search(rf"```(?:python|bash)\n({re.escape(beginning)}.*?)```", PAGE, re.DOTALL)[1]
    assert ADDRESS in block
    return block.replace(ADDRESS, address)


def test_python(address, capsys):
    exec(example("import base64", address), {})
    assert re.fullmatch(r"5\nexit after layer \d+\n", capsys.readouterr().out)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(address):
    done = subprocess.run(["bash", "-c", example("curl", address)], capture_output=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "5"
