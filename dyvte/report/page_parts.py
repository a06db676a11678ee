"""What belongs into the HTML report of one model, and where in the output folder it is looked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """A figure of the paper.

    Attributes:
        name: of the experiment and of the files.
        caption: what it shows.
        benchmarks: of which it is drawn.
        numbers: the stored numbers it is drawn from, below the output folder; ``{benchmark}`` stands for each.
    """

    name: str
    caption: str
    benchmarks: tuple[str, ...]
    numbers: tuple[str, ...]

    @property
    def title(self) -> str:
        """Its name as people write it."""
        return f"Figure {self.name.removeprefix('figure')}"


ATTENTION = (
    "Attention mass by layer: image to image, text to image, and text to text; above, the mean over questions and "
    "heads, below, the variance. The shaded runs are the three stages that a rule cuts, with the paper's names; "
    "the rule finds three in any curve."
)
ENTROPY = (
    "Entropy of the attention of text to image and of text to text by layer, without exit and with it; below, the "
    "share of questions that still have their image. Layers after most exits are means over the few questions left."
)
_WITHOUT = "study/*/{benchmark}/none/attention.npz"
_WITH = "study/*/{benchmark}/dyvte/attention.npz"
FIGURES = (
    Figure("figure3", ATTENTION, ("gqa", "sqa", "textvqa"), (_WITHOUT,)),
    Figure(
        "figure4",
        "Score against the layer at which the image leaves all questions, with the baseline, DyVTE and the oracle "
        "exit; dotted, the share of answers that an exit there leaves unchanged.",
        ("gqa", "sqa", "textvqa"),
        ("results/*/{benchmark}/*/record.json", "study/*/{benchmark}/oracle/oracle.npz"),
    ),
    Figure("figure5", ENTROPY, ("gqa",), (_WITHOUT, _WITH)),
    Figure(
        "figure6",
        "After which layer the image leaves, under DyVTE; the grey bar counts questions without an exit.",
        ("gqa", "sqa", "textvqa", "pope"),
        ("results/*/{benchmark}/dyvte/record.json",),
    ),
    Figure("figure8", ATTENTION, ("vqav2",), (_WITHOUT,)),
    Figure("figure11", ATTENTION, ("pope",), (_WITHOUT,)),
    Figure("figure12", ATTENTION, ("mmbench",), (_WITHOUT,)),
    Figure("figure13", ENTROPY, ("vqav2",), (_WITHOUT, _WITH)),
    Figure("figure14", ENTROPY, ("textvqa",), (_WITHOUT, _WITH)),
    Figure("figure15", ENTROPY, ("sqa",), (_WITHOUT, _WITH)),
    Figure("figure16", ENTROPY, ("pope",), (_WITHOUT, _WITH)),
)
"""Figure 7 is the examples. Figures 9 and 10 are columns of Figure 3 where all are of one model."""


@dataclass(frozen=True)
class Section:
    """Something beyond the paper's tables: a Markdown file with its figures (``NAME*.png``) beside it."""

    name: str
    title: str
    step: str


SECTIONS = (
    Section("dynamic", "What does dynamic buy?", "dynamic"),
    Section("supervision_modes", "Labels of all layers, or of one random layer", "labels"),
    Section("gate_sizes", "How small can gates be?", "gate_sizes"),
)
SECTION_FOLDERS = ("tables", "figures", "study")
"""Folders of the output in which sections are looked for, at any depth."""


def find_numbers(figure: Figure, root: Path) -> list[str]:
    """Patterns of the stored numbers of a figure that are there, with the number of files where it is not one."""
    patterns = [text.format(benchmark=name) for name in figure.benchmarks for text in figure.numbers]
    counts = {pattern: len(list(root.glob(pattern))) for pattern in patterns}
    return [
        f"{pattern} ({count} files)" if count > 1 else pattern for pattern, count in counts.items() if count
    ]


def find_section(section: Section, root: Path) -> tuple[Path | None, list[Path]]:
    """The Markdown file of a section (None where it has none) and its figures."""
    texts, images = (
        [
            path
            for folder in SECTION_FOLDERS
            for path in sorted((root / folder).rglob(f"{section.name}{ending}"))
        ]
        for ending in (".md", "*.png")
    )
    return (texts[0] if texts else None), images


def why_missing(step: str, root: Path) -> str:
    """Why an experiment left nothing, as far as its marks tell."""
    failed, done = root / "steps" / f"{step}.failed", root / "steps" / f"{step}.done"
    if failed.is_file():
        return f"{step} failed: {failed.read_text(encoding='utf-8', errors='replace').strip()}"
    if done.is_file():
        return f"{step} ended well but its files are not here: run it again with FORCE=1."
    return f"{step} has not run."


def left_out(root: Path) -> list[str]:
    """What the steps' logs say was left out for want of data, each once."""
    lines: dict[str, None] = {}
    for log in sorted((root / "steps").glob("*.log")):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if ": left out for " in line:
                lines[line.partition(", its data")[0]] = None
    return list(lines)
