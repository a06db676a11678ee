"""Colors and style of all figures, and :func:`save`, by which the same figure must give the same bytes.

Called from :mod:`dyvte.bench`, :mod:`dyvte.report` and :mod:`dyvte.study`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from dyvte.cli import extra, needs
from dyvte.io import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")
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


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """A function that draws in this style."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        with needs("matplotlib.pyplot", "study").rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def note(panel: Axes, text: str, point: tuple[Any, Any], offset: tuple[float, float], **look: Any) -> None:
    """Write a text beside a point of a panel; the offset is in typographic points."""
    panel.annotate(text, point, xytext=offset, textcoords="offset points", **look)


def number_point(
    panel: Axes, point: tuple[float, float], numbers: Sequence[int], distance: float, **look: Any
) -> None:
    """Write numbers above a point, or below it where the first is odd, so that neighbors stay apart."""
    side, align = (1, "bottom") if numbers[0] % 2 == 0 else (-1, "top")
    text = ", ".join(map(str, numbers))
    note(panel, text, point, (0, side * distance), ha="center", va=align, **look)


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
