"""One HTML file of everything in an output folder: tables, figures, examples, provenance.

python -m dyvte.report.page OUTPUT --out report.html

OUTPUT is the folder that ``python -m dyvte.reproduce all``, which also runs this, fills for one model. The file must
need no other file, no network and no JavaScript, and the same results must give the same bytes. What the folder lacks
is listed with the reason.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dyvte import cli
from dyvte.cli import extra
from dyvte.io import read_text, write_whole
from dyvte.report import page_run
from dyvte.report.examples_page import Examples, read_examples, render
from dyvte.report.paper import AVERAGE, TITLES
from dyvte.report.tables import Table
from dyvte.report.titles import title_of

with extra("study"):
    from markdown_it import MarkdownIt
    from markupsafe import Markup

_WITHOUT = "study/*/{benchmark}/none/attention.npz"
NUMBERS = {
    "attention": (_WITHOUT,),
    "entropy": (_WITHOUT, "study/*/{benchmark}/dyvte/attention.npz"),
    "scores": ("results/*/{benchmark}/*/record.json", "study/*/{benchmark}/oracle/oracle.npz"),
    "exits": ("results/*/{benchmark}/dyvte/record.json",),
}
"""Kind of figure -> patterns of the files it is drawn from, for each ``{benchmark}`` of the figure."""


@dataclass(frozen=True)
class Figure:
    """A figure of the paper: name of its experiment and files, kind (a key of ``NUMBERS``), and benchmarks."""

    name: str
    kind: str
    benchmarks: tuple[str, ...]


FIGURES = (
    Figure("figure3", "attention", ("gqa", "sqa", "textvqa")),
    Figure("figure4", "scores", ("gqa", "sqa", "textvqa")),
    Figure("figure5", "entropy", ("gqa",)),
    Figure("figure6", "exits", ("gqa", "sqa", "textvqa", "pope")),
    Figure("figure8", "attention", ("vqav2",)),
    Figure("figure11", "attention", ("pope",)),
    Figure("figure12", "attention", ("mmbench",)),
    Figure("figure13", "entropy", ("vqav2",)),
    Figure("figure14", "entropy", ("textvqa",)),
    Figure("figure15", "entropy", ("sqa",)),
    Figure("figure16", "entropy", ("pope",)),
)
"""Figure 7 is the examples. Figures 9 and 10 are columns of Figure 3 where all are of one model."""
SECTIONS = (
    ("dynamic", "What does dynamic buy?", "dynamic"),
    ("supervision_modes", "Labels of all layers, or of one random layer", "labels"),
    ("gate_sizes", "How small can gates be?", "gate_sizes"),
)
"""Results beyond the paper: name of a Markdown file and of its figures (``NAME*.png``), title, experiment."""
SECTION_FOLDERS = ("tables", "figures", "study")
"""Folders of the output in which sections are looked for, at any depth."""


@dataclass(frozen=True)
class Part:
    """A section of the page.

    Attributes:
        images: PNG files.
        sources: the files that it is made from, relative to the output folder.
        body: further text, as HTML.
        table: the table, of a section that shows one.
        kind: of a figure; decides its caption.
    """

    name: str
    title: str
    images: Sequence[Path]
    sources: Sequence[str]
    body: Markup = Markup()
    table: Table | None = None
    kind: str = ""

    @property
    def pictures(self) -> list[str]:
        """The PNGs as data URIs."""
        encoded = [base64.b64encode(file.read_bytes()).decode() for file in self.images]
        return [f"data:image/png;base64,{text}" for text in encoded]


@dataclass
class Report:
    """What the template shows; ``missing`` holds (what, why)."""

    tables: list[Part] = field(default_factory=list)
    sections: list[Part] = field(default_factory=list)
    figures: list[Part] = field(default_factory=list)
    examples: list[Examples] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


def collect(root: Path) -> Report:
    """Read all parts that the folder has; the others go to ``Report.missing``."""
    report = Report()
    for name, title in TITLES.items():
        path = root / f"tables/{name}.json"
        if path.is_file():
            table, images = Table.read(path, relative_to=root), sorted(path.parent.glob(f"{name}*.png"))
            notes = markdown("\n".join(table.notes))
            report.tables.append(Part(name, title, images, [f"tables/{name}.csv"], notes, table))
        else:
            report.missing.append((title, why_missing(name, root)))
    for name, title, step in SECTIONS:
        found = [path for folder in SECTION_FOLDERS for path in sorted((root / folder).rglob(f"{name}*"))]
        texts = [path for path in found if path.name == f"{name}.md"][:1]
        images = [path for path in found if path.suffix == ".png"]
        if texts or images:
            body = markdown("".join(without_title(read_text(text)) for text in texts))
            sources = [path.relative_to(root).as_posix() for path in texts + images]
            report.sections.append(Part(name, title, images, sources, body))
        else:
            report.missing.append((title, why_missing(step, root)))
    for figure in FIGURES:
        title = f"Figure {figure.name.removeprefix('figure')}"
        if images := sorted(root.glob(f"figures/*/{figure.name}.png")):
            title += f": {', '.join(map(title_of, figure.benchmarks))}"
            report.figures.append(
                Part(figure.name, title, images, find_numbers(figure, root), kind=figure.kind)
            )
        else:
            report.missing.append((title, why_missing(figure.name, root)))
    for path in sorted(root.glob("study/*/*/examples/examples.json")):
        report.examples.append(Examples(read_examples(path), path.relative_to(root).as_posix()))
    if not report.examples:
        report.missing.append(("Figure 7: examples", why_missing("figure7", root)))
    report.missing.extend((line, "its data are not ready") for line in left_out(root))
    return report


def find_numbers(figure: Figure, root: Path) -> list[str]:
    """Those patterns of a figure's stored numbers that match, with the number of files where it is more than one."""
    patterns = [text.format(benchmark=name) for name in figure.benchmarks for text in NUMBERS[figure.kind]]
    counts = {pattern: len(list(root.glob(pattern))) for pattern in patterns}
    return [text if count == 1 else f"{text} ({count} files)" for text, count in counts.items() if count]


def why_missing(step: str, root: Path) -> str:
    """Why an experiment left no files, from ``steps/STEP.failed`` or ``.done`` of :mod:`dyvte.reproduce`."""
    failed = root / "steps" / f"{step}.failed"
    if failed.is_file():
        return f"{step} failed: {failed.read_text(encoding='utf-8', errors='replace').strip()}"
    if failed.with_suffix(".done").is_file():
        return f"{step} ended well but its files are not here: run it again with FORCE=1."
    return f"{step} has not run."


def left_out(root: Path) -> list[str]:
    """The distinct lines in the steps' logs about what was left out because data were missing."""
    logs = sorted((root / "steps").glob("*.log"))
    lines = [line for log in logs for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return list(dict.fromkeys(line.partition(", its data")[0] for line in lines if ": left out for " in line))


def at_a_glance(report: Report) -> list[tuple[str, float, float]]:
    """(method, kept score, saved FLOPs) on average in Table 2, as shares, where both rows are complete."""
    lines = [
        line for part in report.tables if part.table and part.name == "table2" for line in part.table.lines
    ]
    averages = {(line["model"], line["method"]): line for line in lines if line["benchmark"] == AVERAGE}
    return [
        (method, ours["score"] / base["score"], 1 - ours["tflops"] / base["tflops"])
        for (model, method), ours in averages.items()
        if method != "Baseline" and ours["score"]
        if (base := averages.get((model, "Baseline"))) and base["score"]
    ]


def without_title(text: str) -> str:
    return text.partition("\n")[2] if text.startswith("#") else text


def markdown(text: str) -> Markup:
    """Markdown as HTML. HTML, links and images in it become text; headings go down by two levels."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    html = parser.renderer.render(tokens, parser.options, {})
    wide = html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    return Markup(wide)  # noqa: S704 - the parser escapes HTML


def page_of(root: Path) -> str:
    """The page as HTML; FileNotFoundError without the folder, ValueError when a file in it is broken."""
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


def main(argv: Sequence[str] | None = None) -> None:
    prog, description = "python -m dyvte.report.page", "One self-contained HTML report of an output folder."
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("output", type=Path, help="what python -m dyvte.reproduce all filled")
    parser.add_argument("--out", type=Path, required=True, help="HTML file to write")

    def action(options: argparse.Namespace) -> None:
        page = page_of(options.output)
        if not options.out.is_file() or read_text(options.out) != page:
            write_whole(options.out, page)
        print(f"report: {options.out}")

    cli.run(parser, action, argv)


if __name__ == "__main__":
    main()
