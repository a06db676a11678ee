"""The page of examples (Fig. 7 of the paper), one HTML file, from what :mod:`dyvte.study.examples` stored;
and :func:`render`, which fills the templates of every page.

Called by :mod:`dyvte.study.plot` and :mod:`dyvte.report.page`. Escaping must stay on: pages hold a model's answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from dyvte.cli import extra
from dyvte.io import read_json_object, write_whole
from dyvte.report.titles import method_title, model_title, title_of

with extra("study"):
    from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Examples:
    """The examples of one benchmark; ``study`` is the content of the file, ``source`` its name on the page."""

    study: Mapping[str, Any]
    source: str = ""

    @property
    def same(self) -> int:
        """How many answers are the same with and without exit."""
        answers = [example["answers"] for example in self.study["examples"]]
        return sum(pair["with"]["text"] == pair["without"]["text"] for pair in answers)

    def speed(self, way: str) -> float:
        """Mean tokens per second, "with" or "without" exit."""
        return mean(example["answers"][way]["tokens_per_second"] for example in self.study["examples"])


def read_examples(path: Path) -> dict[str, Any]:
    """What ``python -m dyvte.study.examples`` wrote; ``path`` is the file or its folder.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is not of this study.
    """
    path = path / "examples.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; python -m dyvte.study.examples writes it.")
    content = read_json_object(path)
    if content.get("study") != "examples":
        raise ValueError(f"{path} is not of python -m dyvte.study.examples.")
    return content


@cache
def environment() -> Environment:
    """Jinja's environment for this package's templates; it escapes every value that is not ``Markup``."""
    environment = Environment(
        loader=PackageLoader("dyvte.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(title_of=title_of, model_title=model_title, method_title=method_title)
    return environment


def render(template: str, **values: Any) -> str:
    """The text of a template."""
    return environment().get_template(template).render(**values)


def write_page(source: Path, out: Path) -> Path:
    """Write the page of one study; returns the file."""
    out = out if out.suffix == ".html" else out.with_name(out.name + ".html")
    write_whole(out, render("examples.html", group=Examples(read_examples(source))))
    return out
