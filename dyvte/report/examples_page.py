"""Examples (Fig. 7 of the paper): what ``dyvte.study.examples`` stores, and its page, one HTML file."""

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
    from markupsafe import Markup


@dataclass(frozen=True)
class Examples:
    """The examples of one benchmark; ``study`` is the content of the file, ``source`` its name for a reader."""

    study: Mapping[str, Any]
    source: str

    @property
    def title(self) -> str:
        """The benchmark."""
        return title_of(self.study["benchmark"])

    @property
    def labels(self) -> dict[str, str]:
        """Names of the two ways in which each question was answered."""
        return {"without": "without exit", "with": method_title(self.study)}

    @property
    def summary(self) -> str:
        """How many answers are the same, and the speed of both ways, in one sentence."""
        answers = [example["answers"] for example in self.study["examples"]]
        same = sum(pair["with"]["text"] == pair["without"]["text"] for pair in answers)
        speeds = {
            way: mean(pair[way]["tokens_per_second"] for pair in answers) for way in ("without", "with")
        }
        change = 100 * (speeds["with"] / speeds["without"] - 1)
        return (
            f"{same} of {len(answers)} answers are the same. Mean tokens per second: {speeds['without']:.1f} without "
            f"exit, {speeds['with']:.1f} with it ({change:+.1f}%)."
        )

    @property
    def conditions(self) -> str:
        """How the examples were answered, and on what."""
        study, machine = self.study, self.study["hardware"]
        versions = ", ".join(f"{name} {study['versions'][name]}" for name in ("torch", "transformers"))
        where = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['cores']} cores"
        return (
            f"{model_title(study['model'])}, {study['num_layers']} layers, {study['dtype']}, batch size 1, median of "
            f"{study['rounds']} rounds. {where}; {versions}. Commit {study['commit']}, {study['created']}."
        )


def read_examples(path: Path) -> Examples:
    """What ``python -m dyvte.study.examples`` wrote; ``path`` is the file or its folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this study.
    """
    path = path / "examples.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; python -m dyvte.study.examples writes it.")
    content = read_json_object(path)
    if content.get("study") != "examples":
        raise ValueError(f"{path} is not of python -m dyvte.study.examples.")
    return Examples(content, path.name)


@cache
def environment() -> Environment:
    """Templates of this package; everything is escaped unless it is ``Markup``."""
    return Environment(
        loader=PackageLoader("dyvte.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """A page that needs no other file: its style sheet is inside."""
    style = Markup(environment().get_template("page.css").render())
    return environment().get_template(template).render(style=style, **values)


def write_page(source: Path, out: Path) -> Path:
    """Write the page of one study; returns the file."""
    out = out if out.suffix == ".html" else out.with_name(out.name + ".html")
    examples = read_examples(source)
    title = f"{examples.title}, {model_title(examples.study['model'])}"
    write_whole(out, render("examples.html", title=title, group=examples))
    return out
