"""The documentation site builds without a warning and without network, and its pages load nothing from elsewhere."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

import dyvte

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material", reason="needs the extra docs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    def connect(*_):
        raise AssertionError("the build asked for a connection")

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.setattr(socket.socket, "connect", connect)
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_every_page_of_the_project_is_on_the_site_and_in_the_navigation(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    for page in [
        *(ROOT / "docs").rglob("*.md"),
        *(Path("docs") / name for name in ("contributing", "changelog")),
    ]:
        name = (
            page.relative_to(ROOT / "docs" if page.is_absolute() else "docs").with_suffix(".html").as_posix()
        )
        name = name.replace("README", "index")
        assert (site / name).is_file() and f'href="{name}"' in home, name


def test_pages_load_nothing_from_elsewhere_and_lead_to_files_that_exist(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for tag, attributes in re.findall(r"<(link|script|img|iframe)\b([^>]*)", text):
            loaded = re.findall(r'(?:href|src)="?([^"\s>]+)', attributes)
            assert not [name for name in loaded if "//" in name], (page, tag)
        if page.name == "404.html":
            continue  # its links start at the root of the server
        links = [name for name in re.findall(r'(?:href|src)="([^"#?]+)', text) if not re.match(r"\w+:", name)]
        assert not [name for name in links if not (page.parent / name).exists()], page


def test_the_api_page_has_every_public_name(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    headings = re.findall(r'<h3 id="dyvte\.[\w.]+\.(\w+)"', text)
    assert set(dyvte.__all__) - {"__version__"} <= set(headings)
    assert not re.search(r":(class|func|meth|mod):", text), "a role of reStructuredText is left"
