"""One HTML file of everything in an output folder: tables, figures, examples, where it all comes from.

python -m dyvte.report.page OUTPUT --out report.html

OUTPUT is the folder that ``python -m dyvte.reproduce all`` fills for one model. The file needs no other file, no
network and no JavaScript; the same results give the same bytes. What is not in the folder is listed with the reason.
"""

from __future__ import annotations

import argparse
import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dyvte import cli
from dyvte.cli import extra
from dyvte.io import read_text, write_whole
from dyvte.report import page_run, paper_table, rivals_table, state_table
from dyvte.report.examples_page import Examples, read_examples, render
from dyvte.report.page_parts import FIGURES, SECTIONS, find_numbers, find_section, left_out, why_missing
from dyvte.report.paper import AVERAGE
from dyvte.report.tables import Table
from dyvte.report.titles import title_of

with extra("study"):
    from markdown_it import MarkdownIt
    from markupsafe import Markup

TABLES = {**paper_table.TITLES, **state_table.TITLES, "table4": rivals_table.TITLE}
"""Title of each table by the name of its files; sorted, in the order of the paper."""


@dataclass(frozen=True)
class Part:
    """A section of the page.

    Attributes:
        body: what stands in it besides what the other attributes hold.
        images: addresses that hold the pictures themselves.
        sources: the files that it is made from, below the output folder, with what is to be said of them.
        table: None but for a table of the paper.
    """

    name: str
    title: str
    body: Markup | str
    images: Sequence[str] = ()
    sources: Sequence[str] = ()
    table: Table | None = None

    @property
    def header(self) -> list[tuple[str, int]]:
        """The first line of the table's header: benchmarks with the number of their columns."""
        columns = self.table.columns if self.table else ()
        grouped = itertools.groupby(columns, key=lambda column: column.benchmark)
        return [(name, len(list(group))) for name, group in grouped]


@dataclass
class Report:
    """What the template shows; ``missing`` holds (what, why)."""

    tables: list[Part] = field(default_factory=list)
    sections: list[Part] = field(default_factory=list)
    figures: list[Part] = field(default_factory=list)
    examples: list[Examples] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


def collect(root: Path) -> Report:
    """Read all parts that the folder holds; the others are ``missing``.

    Raises:
        ValueError: a file is broken.
    """
    report = Report()
    for name, title in sorted(TABLES.items()):
        path = root / f"tables/{name}.json"
        if path.is_file():
            table = Table.read(path, relative_to=root)
            notes, images = markdown("\n".join(table.notes)), sorted(path.parent.glob(f"{name}*.png"))
            report.tables.append(Part(name, title, notes, pictures(images), [f"tables/{name}.csv"], table))
        else:
            report.missing.append((title, why_missing(name, root)))
    for section in SECTIONS:
        text, files = find_section(section, root)
        if text is None and not files:
            report.missing.append((section.title, why_missing(section.step, root)))
            continue
        sources = [path.relative_to(root).as_posix() for path in (*([text] if text else []), *files)]
        body = markdown(without_title(read_text(text))) if text else ""
        report.sections.append(Part(section.name, section.title, body, pictures(files), sources))
    for figure in FIGURES:
        files = sorted(root.glob(f"figures/*/{figure.name}.png"))
        if not files:
            report.missing.append((figure.title, why_missing(figure.name, root)))
            continue
        title = f"{figure.title}: {', '.join(map(title_of, figure.benchmarks))}"
        numbers = find_numbers(figure, root)
        report.figures.append(Part(figure.name, title, figure.caption, pictures(files), numbers))
    for path in sorted(root.glob("study/*/*/examples/examples.json")):
        report.examples.append(replace(read_examples(path), source=path.relative_to(root).as_posix()))
    if not report.examples:
        report.missing.append(("Figure 7: examples", why_missing("figure7", root)))
    report.missing.extend((line, "its data are not ready") for line in left_out(root))
    return report


def at_a_glance(report: Report) -> list[str]:
    """What DyVTE does on average in Table 2, in a sentence, where both rows are complete."""
    tables = [part.table for part in report.tables if part.table and part.name == "table2"]
    averages = {
        (entry.names["model"], entry.names["method"]): (entry.values["score"], entry.values["tflops"])
        for table in tables
        for entry in table.entries
        if entry.benchmark == AVERAGE
    }
    lines = []
    for (model, method), (score, tflops) in averages.items():
        base_score, base_tflops = averages.get((model, "Baseline"), (None, None))
        if method != "Baseline" and score and tflops and base_score and base_tflops:
            lines.append(
                f"{method} keeps {100 * score / base_score:.1f}% of the baseline's average score on the benchmarks "
                f"of Table 2 with {100 * (1 - tflops / base_tflops):.1f}% fewer FLOPs (whole prefill, vision tower "
                "included)."
            )
    return lines


def pictures(files: Sequence[Path]) -> list[str]:
    """PNGs as data URIs."""
    return [f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}" for file in files]


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


def page_of(root: Path) -> str:
    """The page as HTML.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file in it is broken.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; python -m dyvte.reproduce all makes one.")
    report, records, studies = collect(root), page_run.records_below(root), page_run.read_studies(root)
    return render(
        "page.html",
        title=page_run.heading(records.values(), studies, root),
        report=report,
        glance=at_a_glance(report),
        facts=page_run.facts(root, records, studies),
        digests=page_run.digests(records.values()),
        steps=page_run.steps(root),
    )


def write(options: argparse.Namespace) -> None:
    """Write the page, unless it is there with the same content."""
    page = page_of(options.output)
    if not options.out.is_file() or read_text(options.out) != page:
        write_whole(options.out, page)
    print(f"report: {options.out}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.page",
        description="One self-contained HTML report of an output folder.",
    )
    parser.add_argument("output", type=Path, help="what python -m dyvte.reproduce all filled")
    parser.add_argument("--out", type=Path, required=True, help="HTML file to write")
    cli.run(parser, write, argv)


if __name__ == "__main__":
    main()
