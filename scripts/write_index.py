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
    source = path.read_text(encoding="utf-8")
    text, _, rest = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")
    if text.startswith("python -m"):
        described = re.search(r'description=((\s*".*")+)', source)
        text = "".join(re.findall(r'"(.*)"', described[1])) if described else rest.partition("\n\n")[0]
    text = re.sub(r":(class|func|mod|meth|data):", "", " ".join(text.split()).replace("``", "`"))
    return re.split(r"\. (?=[A-Z])", text)[0].rstrip(".:").replace("|", "\\|")


def table(head: tuple[str, str], files: dict[str, Path]) -> str:
    """Names with the first sentence of each file."""
    rows = [head, ("---", "---"), *((f"`{name}`", first_sentence(path)) for name, path in files.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def core() -> dict[str, Path]:
    """Files of the core by their path."""
    paths = [path for folder in CORE for path in sorted((ROOT / "dyvte" / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path for path in paths if path.name != "__init__.py"}


def written(page: str) -> str:
    """The page with its generated parts made anew."""
    modules = {f"python -m {name}": path for name, path in commands().items()}
    tables = {
        "tree": table(("File", "Content"), core()),
        "commands": table(("Command", "What it does"), modules),
    }
    for name, content in tables.items():
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
