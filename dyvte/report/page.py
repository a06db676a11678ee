"""One HTML file of everything in an output folder: tables, figures, examples, where it all comes from.

python -m dyvte.report.page OUTPUT --out report.html

OUTPUT is the folder that ``scripts/reproduce/all.sh`` fills for one model. The file needs no other, no network and no
JavaScript; the same results give the same bytes. What is not in the folder is listed with the reason.
"""

from __future__ import annotations

import argparse
import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from dyvte.report import page_run
from dyvte.report.page_parts import (
    FIGURES,
    SECTIONS,
    find_numbers,
    find_section,
    left_out,
    why_missing,
)
from dyvte.report.page_tables import LAYOUTS, read_table
from dyvte.report.paper import AVERAGE
from dyvte.report.table import title_of
from dyvte.study.examples_page import read_examples, summary_of
from dyvte.study.titles import method_title


@dataclass(frozen=True)
class Image:
    """A picture inside the page."""

    alt: str
    data: str


@dataclass
class Report:
    """What the template shows, part by part."""

    tables: list[dict[str, Any]] = field(default_factory=list)
    sections: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


def collect(root: Path) -> Report:
    """Read all parts that the folder holds; the others are ``missing``.

    Raises:
        ValueError: a file is broken.
    """
    report = Report()
    for name in sorted(LAYOUTS):
        path = root / f"tables/{name}.csv"
        if path.is_file():
            notes = markdown(notes_of(path.with_suffix(".md")))
            images = [picture(file, LAYOUTS[name].title) for file in sorted(path.parent.glob(f"{name}*.png"))]
            report.tables.append({"table": read_table(path, root), "notes": notes, "images": images})
        else:
            report.missing.append((LAYOUTS[name].title, why_missing(name, root)))
    for section in SECTIONS:
        text, images = find_section(section, root)
        if text is None and not images:
            report.missing.append((section.title, why_missing(section.step, root)))
            continue
        sources = [path.relative_to(root).as_posix() for path in (*([text] if text else []), *images)]
        body = markdown(without_title(text.read_text(encoding="utf-8"))) if text else Markup()
        pictures = [picture(path, section.title) for path in images]
        report.sections.append({"part": section, "body": body, "images": pictures, "sources": sources})
    for figure in FIGURES:
        files = sorted(root.glob(f"figures/*/{figure.name}.png"))
        if not files:
            report.missing.append((figure.title, why_missing(figure.name, root)))
            continue
        benchmarks = ", ".join(map(title_of, figure.benchmarks))
        pictures = [picture(path, f"{figure.title}: {benchmarks}") for path in files]
        numbers = find_numbers(figure, root)
        report.figures.append(
            {"part": figure, "benchmarks": benchmarks, "images": pictures, "numbers": numbers}
        )
    report.examples = list(examples_of(root))
    if not report.examples:
        report.missing.append(("Figure 7: examples", why_missing("figure7", root)))
    report.missing.extend((line, "its data are not ready") for line in left_out(root))
    return report


def examples_of(root: Path) -> Iterator[dict[str, Any]]:
    """The examples of each benchmark, with a sentence that sums them up."""
    for path in sorted(root.glob("study/*/*/examples/examples.json")):
        study = read_examples(path)
        yield {
            "study": study,
            "title": title_of(study["benchmark"]),
            "summary": summary_of(study["examples"]),
            "labels": {"without": "without exit", "with": method_title(study)},
            "source": path.relative_to(root).as_posix(),
        }


def at_a_glance(report: Report) -> list[str]:
    """What DyVTE does on average in Table 2, in a sentence, where both rows are complete."""
    lines = []
    for part in report.tables:
        header, *rows = part["table"].lines
        if part["table"].name != "table2":
            continue
        found = [dict(zip(header, row, strict=True)) for row in rows]
        averages = {(line["model"], line["method"]): line for line in found if line["benchmark"] == AVERAGE}
        for (model, method), line in averages.items():
            base = averages.get((model, "Baseline"))
            if base and method != "Baseline":
                kept = 100 * float(line["score"]) / float(base["score"])
                saved = 100 * (1 - float(line["tflops"]) / float(base["tflops"]))
                lines.append(
                    f"{method} keeps {kept:.1f}% of the baseline's average score on the benchmarks of Table 2 with "
                    f"{saved:.1f}% fewer FLOPs (whole prefill, vision tower included)."
                )
    return lines


def picture(path: Path, alt: str) -> Image:
    """A PNG as a data URI."""
    return Image(alt, "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"))


def notes_of(path: Path) -> str:
    """What stands below the table in a Markdown file; nothing where there is no such file.

    What it says of brackets is left out: the page shows the paper's values in another way.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    last = max((index for index, line in enumerate(lines) if line.startswith("|")), default=-1)
    notes = "\n".join(lines[last + 1 :]) if last >= 0 else ""
    return re.sub(r"In brackets: .*?\.(\s|$)", "", notes)


def without_title(text: str) -> str:
    """Markdown without its first line, where that is a heading."""
    return text.partition("\n")[2] if text.startswith("#") else text


def markdown(text: str) -> Markup:
    """Markdown as HTML: HTML in it stays text, links and pictures too; headings sink by two orders."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    html = parser.renderer.render(tokens, parser.options, {})
    return Markup(html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>"))


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


def page_of(root: Path) -> str:
    """The page as HTML.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file in it is broken.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; scripts/reproduce/all.sh makes one.")
    report, records, studies = collect(root), page_run.read_records(root), page_run.read_studies(root)
    style = Markup(environment().get_template("page.css").render())
    return (
        environment()
        .get_template("page.html")
        .render(
            style=style,
            title=page_run.heading(records.values(), studies, root),
            report=report,
            glance=at_a_glance(report),
            facts=page_run.facts(root, records, studies),
            digests=page_run.digests(records.values()),
            steps=page_run.steps(root),
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.page",
        description="One self-contained HTML report of an output folder.",
    )
    parser.add_argument("output", type=Path, help="what scripts/reproduce/all.sh filled")
    parser.add_argument("--out", type=Path, required=True, help="HTML file to write")
    options = parser.parse_args(arguments)
    try:
        page = page_of(options.output)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        if not options.out.is_file() or options.out.read_text(encoding="utf-8") != page:
            options.out.write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"report: {options.out}")


if __name__ == "__main__":
    main()
