"""Write the generated parts of docs/layout.md: the files of the core, and all commands, each with its first sentence.

python scripts/write_index.py            # after adding, moving or renaming a file
python scripts/write_index.py --check    # exit code 1 where the page is out of date
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/layout.md"
CORE = ("decoding", "families", "gates", "engine")


def commands() -> dict[str, Path]:
    """Module name -> file, of everything in the packages that ``python -m`` runs, sorted by name."""
    found: dict[str, Path] = {}
    for package in ("dyvte", "llava"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name == "__main__.py":
                name = path.parent
            elif 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"):
                name = path.with_suffix("")
            else:
                continue
            found[name.relative_to(ROOT).as_posix().replace("/", ".")] = path
    return dict(sorted(found.items()))


def first_sentence(path: Path) -> str:
    """Of the module's docstring, without reStructuredText's marks; of the parser's description where the docstring is
    a line of usage."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    paragraphs = (ast.get_docstring(tree) or "").split("\n\n")
    if paragraphs[0].startswith("python -m"):
        described = [
            keyword.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            for keyword in node.keywords
            if keyword.arg == "description" and isinstance(keyword.value, ast.Constant)
        ]
        paragraphs = [str(text) for text in described] + paragraphs[1:] + [""]
    text = " ".join(paragraphs[0].split()).replace("``", "`")
    for role in (":class:", ":func:", ":mod:", ":meth:", ":data:"):
        text = text.replace(role, "")
    return re.split(r"\. (?=[A-Z])", text)[0].rstrip(".:").replace("|", "\\|")


def tree() -> str:
    """A table of the core's files."""
    lines = ["| File | Content |", "| --- | --- |"]
    for folder in CORE:
        for path in sorted((ROOT / "dyvte" / folder).rglob("*.py")):
            if path.name == "__init__.py":
                continue
            lines.append(f"| `{path.relative_to(ROOT).as_posix()}` | {first_sentence(path)} |")
    return "\n".join(lines)


def index() -> str:
    """A table of all commands."""
    lines = ["| Command | What it does |", "| --- | --- |"]
    lines += [f"| `python -m {name}` | {first_sentence(path)} |" for name, path in commands().items()]
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with its generated parts made anew."""
    for name, content in (("tree", tree()), ("commands", index())):
        start, end = f"<!-- {name}: scripts/write_index.py -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(end)
        page = f"{before}{start}{content}\n{end}{after}"
    return page


def main(arguments: list[str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    if "--check" in arguments:
        if written(page) != page:
            sys.exit(f"{PAGE.relative_to(ROOT)} is out of date: run python scripts/write_index.py")
        return
    PAGE.write_text(written(page), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
