"""Figures of attention studies: who attends to whom (Fig. 3, 8 to 12), and how sharply (Fig. 5, 13 to 16)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dyvte.cli import extra, needs
from dyvte.report.plotting import BLUE, GREEN, GREY, ORANGE, STYLE
from dyvte.report.titles import method_title, model_title, title_of
from dyvte.study.attention import AttentionStudy
from dyvte.study.stages import NAMES, Stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {
    "image_self": (GREEN, "image self-attention"),
    "cross": (ORANGE, "cross-attention"),
    "text_self": (BLUE, "text self-attention"),
}
SCALES = {
    "mass": "attention mass",
    "weight": "attention weight per key",
    "entropy": "entropy (nats)",
}


def attention_figure(studies: Sequence[AttentionStudy], measure: str = "mass") -> Figure:
    """Mean (above) and variance (below) of the three kinds by layer; one column for each study, stages shaded."""
    figure, grid = _grid(2, len(studies), sharey="row")
    for column, study in enumerate(studies):
        for kind, (color, name) in LOOKS.items():
            mean, variance = study.curve(measure, kind)
            # cross and text self-attention have the same variance of mass
            style = "--" if kind == "text_self" else "-"
            grid[0][column].plot(mean, style, color=color, label=name)
            grid[1][column].plot(variance, style, color=color)
        if study.stages is not None:
            _shade(grid[0][column], study.stages, len(study.count[0]))
        grid[0][column].set_title(_title(study), loc="left", fontsize=9)
    grid[0][0].set_ylabel(f"mean {SCALES[measure]}")
    grid[1][0].set_ylabel("variance")
    _layers(grid)
    low, high = grid[0][0].get_ylim()
    grid[0][0].set_ylim(low, high + 0.12 * (high - low))  # room for the numbers of the stages
    stages = "stages: " + ", ".join(f"{number} {name}" for number, name in enumerate(NAMES, 1))
    figure.legend(
        *grid[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
        title=stages if any(study.stages for study in studies) else None,
        title_fontsize=8,
    )
    return figure


def entropy_figure(studies: Sequence[AttentionStudy]) -> Figure:
    """Entropy of cross-attention and text self-attention by layer, and where the image is still there.

    One column for each study, such as without and with exit. Bands are one standard deviation over samples and heads.
    """
    figure, grid = _grid(3, len(studies), sharey="row", heights=(2, 2, 1))
    for column, study in enumerate(studies):
        for row, kind in enumerate(("cross", "text_self")):
            color, _ = LOOKS[kind]
            mean, variance = study.curve("entropy", kind)
            deviation = np.sqrt(variance)
            layers = range(len(mean))
            grid[row][column].fill_between(
                layers, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0
            )
            grid[row][column].plot(layers, mean, color=color)
        # text_self is defined at layer 0 for every sample with an image
        share = 100 * study.count[1] / max(1, int(study.count[2].max()))
        grid[2][column].bar(range(len(share)), share, color=GREY, width=0.85)
        grid[0][column].set_title(_title(study), loc="left", fontsize=9)
    for row, name in enumerate(
        ("entropy of\ncross-attention", "entropy of\ntext self-attention", "with\nimage (%)")
    ):
        grid[row][0].set_ylabel(name)
    _layers(grid)
    return figure


def _shade(panel: Axes, stages: Stages, layers: int) -> None:
    """Mark the three stages, numbered on top."""
    edges = [-0.5, *(start - 0.5 for start in stages.starts), layers - 0.5]
    for number, (left, right) in enumerate(pairwise(edges)):
        panel.axvspan(left, right, color="black", alpha=0.03 + 0.03 * number, linewidth=0)
        panel.annotate(
            str(number + 1),
            ((left + right) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, -3),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            color="#444",
        )


def _title(study: AttentionStudy) -> str:
    manifest = study.manifest
    return (
        f"{model_title(manifest['model'])}, {method_title(manifest)}\n"
        f"{title_of(manifest['benchmark'])}, {manifest['samples']} questions"
    )


def _layers(grid: list[list[Axes]]) -> None:
    with extra("study"):
        from matplotlib.ticker import MaxNLocator

    for panel in grid[-1]:
        panel.set_xlabel("layer")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _grid(rows: int, columns: int, sharey: str, heights: Sequence[float] | None = None):
    """A figure and its panels, ``grid[row][column]``."""
    pyplot = needs("matplotlib.pyplot", "study")

    heights = heights or (2.0,) * rows
    with pyplot.rc_context(STYLE):
        figure, grid = pyplot.subplots(
            rows,
            columns,
            figsize=(max(5.2, 3.2 * columns), sum(heights) + 0.8),
            sharex="col",
            sharey=sharey,  # type: ignore[arg-type]
            squeeze=False,
            layout="constrained",
            height_ratios=heights,
        )
    return figure, [list(row) for row in grid]
