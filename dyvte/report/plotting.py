"""What all figures share: colors, style, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyvte.cli import extra
from dyvte.io import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
"""Metadata that keeps the time out of a file, by ending: the same figure gives the same bytes."""


def number_point(
    panel: Axes, point: tuple[float, float], numbers: Sequence[int], distance: int, **text: Any
) -> None:
    """Write numbers above a point, or below it where the first is odd, so that neighbors stay apart.

    Args:
        distance: in typographic points.
        text: properties of the text, such as its size.
    """
    side, text["va"] = (1, "bottom") if numbers[0] % 2 == 0 else (-1, "top")
    place = {"xytext": (0, side * distance), "textcoords": "offset points", "ha": "center"}
    panel.annotate(", ".join(map(str, numbers)), point, **place, **text)


def save(figure: Figure, out: Path) -> list[Path]:
    """Write and close a figure, in the format of the name's ending, or as PNG and PDF where it has no known ending.

    Returns:
        The files.
    """
    with extra("study"):
        from matplotlib import pyplot

    files = [out] if out.suffix in UNDATED else [out.with_name(out.name + end) for end in (".png", ".pdf")]
    with pyplot.rc_context({"svg.hashsalt": "dyvte"}):
        for file in files:
            with whole_file(file) as unfinished:
                figure.savefig(unfinished, format=file.suffix[1:], metadata=UNDATED[file.suffix])
    pyplot.close(figure)
    return files
