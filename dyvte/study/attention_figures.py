"""Figures of attention studies: who attends to whom (Fig. 3, 8 to 12), and how sharply (Fig. 5, 13 to 16).

Called by :mod:`dyvte.study.plot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dyvte.cli import extra
from dyvte.report.plotting import BLUE, GREEN, GREY, ORANGE, note, styled
from dyvte.report.titles import method_title, model_title, title_of
from dyvte.study.attention import AttentionStudy
from dyvte.study.stages import NAMES, Stages

with extra("study"):
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

LOOKS = {
    "image_self": (GREEN, "image self-attention"),
    "cross": (ORANGE, "cross-attention"),
    "text_self": (BLUE, "text self-attention"),
}
SCALES = {"mass": "attention mass", "weight": "attention weight per key", "entropy": "entropy (nats)"}


def attention_figure(studies: Sequence[AttentionStudy], measure: str = "mass") -> Figure:
    """Mean (above) and variance (below) of the three kinds by layer; one column for each study, stages shaded."""
    figure, grid = _grid(studies, (2, 2), [f"mean {SCALES[measure]}", "variance"])
    for (above, below), study in zip(grid.T, studies, strict=True):
        for kind, (color, name) in LOOKS.items():
            mean, variance = study.curve(measure, kind)
            # cross and text self-attention have the same variance of mass
            style = "--" if kind == "text_self" else "-"
            above.plot(mean, style, color=color, label=name)
            below.plot(variance, style, color=color)
        if study.stages is not None:
            _shade(above, study.stages, len(study.count[0]))
    low, high = grid[0, 0].get_ylim()
    grid[0, 0].set_ylim(low, high + 0.12 * (high - low))  # room for the numbers of the stages
    stages = "stages: " + ", ".join(f"{number} {name}" for number, name in enumerate(NAMES, 1))
    place = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": 8, "title_fontsize": 8}
    title = stages if any(study.stages for study in studies) else None
    figure.legend(*grid[0, 0].get_legend_handles_labels(), title=title, **place)
    return figure


def entropy_figure(studies: Sequence[AttentionStudy]) -> Figure:
    """Entropy of cross-attention and text self-attention by layer, and where the image is still there.

    One column for each study, such as without and with exit. Bands are one standard deviation over samples and heads.
    """
    names = ["entropy of\ncross-attention", "entropy of\ntext self-attention", "with\nimage (%)"]
    figure, grid = _grid(studies, (2, 2, 1), names)
    for panels, study in zip(grid.T, studies, strict=True):
        layers = range(study.count.shape[1])
        for panel, kind in zip(panels, ("cross", "text_self"), strict=False):
            color, _ = LOOKS[kind]
            mean, variance = study.curve("entropy", kind)
            band = mean - np.sqrt(variance), mean + np.sqrt(variance)
            panel.fill_between(layers, *band, color=color, alpha=0.15, linewidth=0)
            panel.plot(layers, mean, color=color)
        # text_self is defined at layer 0 for every sample with an image
        share = 100 * study.count[1] / max(1, int(study.count[2].max()))
        panels[2].bar(layers, share, color=GREY, width=0.85)
    return figure


def _shade(panel: Axes, stages: Stages, layers: int) -> None:
    """Mark the three stages, numbered on top."""
    edges = [-0.5, *(start - 0.5 for start in stages.starts), layers - 0.5]
    for number, (left, right) in enumerate(pairwise(edges)):
        panel.axvspan(left, right, color="black", alpha=0.03 + 0.03 * number, linewidth=0)
        look = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top", "color": "#444"}
        note(panel, str(number + 1), ((left + right) / 2, 1), (0, -3), fontsize=8, **look)


@styled
def _grid(studies: Sequence[AttentionStudy], heights: Sequence[float], names: Sequence[str]):
    """A figure with a titled column for each study and a row for each name, and its panels [row, column]."""
    columns = len(studies)
    size = max(5.2, 3.2 * columns), float(sum(heights)) + 0.8
    shared: dict[str, Any] = {"sharex": "col", "sharey": "row", "squeeze": False, "layout": "constrained"}
    figure, grid = pyplot.subplots(len(names), columns, figsize=size, height_ratios=heights, **shared)
    for panel, name in zip(grid[:, 0], names, strict=True):
        panel.set_ylabel(name)
    for column, study in zip(grid.T, studies, strict=True):
        about = study.manifest
        title = f"{model_title(about['model'])}, {method_title(about)}\n{title_of(about['benchmark'])}, "
        column[0].set_title(f"{title}{about['samples']} questions", loc="left", fontsize=9)
        column[-1].set_xlabel("layer")
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, grid
