"""Colors and style of all figures, and :func:`save`, by which the same figure must give the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyvte.cli import extra
from dyvte.io import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, GREEN = "#2f6db5", "#d9622b", "#8a8f98", "#3c8d5a"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": "#444",
    "ytick.color": "#444",
    "figure.dpi": 150,
}
UNDATED: dict[str, dict[str, None]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
"""By ending, metadata that leaves out the time of writing."""


def save(figure: Figure, out: Path) -> list[Path]:
    """Write and close a figure, in the format of the name's ending, or as PNG and PDF; returns the files."""
    with extra("study"):
        from matplotlib import pyplot

    files = [out] if out.suffix in UNDATED else [out.with_name(out.name + end) for end in (".png", ".pdf")]
    with pyplot.rc_context({"svg.hashsalt": "dyvte"}):
        for file in files:
            with whole_file(file) as unfinished:
                figure.savefig(unfinished, format=file.suffix[1:], metadata=UNDATED[file.suffix])
    pyplot.close(figure)
    return files
