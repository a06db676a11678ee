"""Hook of mkdocs.yml: the pages of the site that lie outside docs/, the order of the navigation, and links.

On the site, a link to a file that has no page there, such as a script, is its text without a link.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "playground/tiny/README.md": "tiny_llava.md",
    "playground/small/README.md": "small_llava.md",
}
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):<code>~?")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Order the pages as in ``extra.order`` of mkdocs.yml, then by name; the folders stay at the end."""
    order: list[str] = config.extra["order"]

    def place(item: object) -> tuple[bool, int, str]:
        name = item.file.src_uri.removesuffix(".md") if isinstance(item, Page) else ""
        return isinstance(item, Section), order.index(name) if name in order else len(order), name

    nav.items.sort(key=place)
    nav.pages.sort(key=lambda page: (page.parent is not None, place(page)))
    around = [None, *nav.pages, None]
    for page, before, after in zip(nav.pages, around, around[2:], strict=False):
        page.previous_page, page.next_page = before, after
    return nav


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the project into links between pages."""
    outside = {name: source for source, name in OUTSIDE.items()}
    here = PurePosixPath(outside.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target:
            return found[0]
        file = os.path.normpath(here.parent / target)
        name = OUTSIDE.get(file, file.removeprefix("docs/"))
        if files.get_file_from_path(name) is None or (name == file and file not in OUTSIDE):
            return text
        return f"[{text}]({os.path.relpath(name, PurePosixPath(page.file.src_uri).parent)}{anchor})"

    return LINK.sub(link, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings name objects as reStructuredText does; leave the name."""
    return ROLE.sub("<code>", html)
