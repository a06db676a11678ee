"""Figures of the studies from stored numbers alone; the same numbers give the same bytes.

python -m dyvte.study.plot attention STUDIES... --out figure3 [--measure mass|weight]
python -m dyvte.study.plot entropy STUDIES... --out figure5
python -m dyvte.study.plot manual RECORDS... [--oracle STUDIES...] --out figure4
python -m dyvte.study.plot examples STUDY --out figure7.html

A name without ending is written as PNG and as PDF.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dyvte.cli import extra, run
from dyvte.report.examples_page import write_page
from dyvte.report.plotting import BLUE, GREEN, GREY, ORANGE, note, save, styled
from dyvte.report.record import ResultRecord, read_records
from dyvte.report.titles import BASELINE, method_title, model_title, title_of
from dyvte.study.attention import AttentionStudy
from dyvte.study.oracle import OracleStudy
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
    """Who attends to whom (Fig. 3, 8 to 12): mean (above) and variance (below) of the three kinds by layer.

    One column for each study, stages shaded.
    """
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
    """How sharply (Fig. 5, 13 to 16): entropy of cross- and text self-attention by layer, and where the image is.

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


@styled
def manual_exit_figure(records: Sequence[ResultRecord], oracles: Sequence[OracleStudy] = ()) -> Figure:
    """Score against the exit layer (Fig. 4 of the paper), one panel for each model and benchmark.

    Args:
        records: of every fixed exit (``dyvte.study.fixed_exits``), the baseline and DyVTE, as far as they are there.
        oracles: drawn at their mean exit layer and the baseline's score, which is theirs; and, as a second curve, the
            percent of answers that a fixed exit keeps as they are.

    Raises:
        ValueError: there is no fixed exit among the records.
    """
    places = sorted({(r.model, r.benchmark) for r in records if r.method == "fixed"})
    if not places:
        raise ValueError("None of the records is of a fixed exit; run python -m dyvte.study.fixed_exits.")
    size = 6.4, 2.8 * len(places) + 0.8
    figure, grid = pyplot.subplots(len(places), 1, figsize=size, squeeze=False, layout="constrained")
    oracle_of = {(o.manifest["model"], o.manifest["benchmark"]): o for o in reversed(oracles)}
    for panel, (model, benchmark) in zip(grid[:, 0], places, strict=True):
        here = [r for r in records if (r.model, r.benchmark) == (model, benchmark)]
        _draw_exits(panel, here, oracle_of.get((model, benchmark)))
        panel.set_title(f"{title_of(benchmark)}, {model_title(model)}", loc="left", fontsize=10)
    axis = "layer after which the visual tokens exit (mean over questions for DyVTE and the oracle)"
    grid[-1, 0].set_xlabel(axis)
    shown = {
        label: handle
        for panel in grid[:, 0]
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }  # below the panels: curves may run anywhere in them
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _draw_exits(panel: Axes, records: Sequence[ResultRecord], oracle: OracleStudy | None) -> None:
    layers, scores = zip(
        *sorted((int(r.settings["exit_layer"]), r.score) for r in records if r.method == "fixed"), strict=True
    )
    label = "same layer for all questions"
    panel.plot(layers, scores, "o-", color=GREY, markersize=4, linewidth=1, label=label)
    baselines = [r for r in records if r.method == BASELINE]
    for record in baselines[:1]:
        panel.axhline(record.score, color="black", linestyle="--", linewidth=1, label="baseline, no exit")
    for record in (r for r in records if r.method == "dyvte"):
        label = f"DyVTE, threshold {float(record.settings.get('threshold', '0.5')):g}"
        panel.plot(record.mean_exit_layer, record.score, "*", color=ORANGE, markersize=13, label=label)
    if oracle is not None:
        if baselines:
            exits = float(oracle.exit_layers.mean())
            panel.plot(exits, baselines[0].score, "D", color=BLUE, markersize=7, label="oracle exit")
        second = panel.twinx()
        second.plot(oracle.unchanged, ":", color=BLUE, linewidth=1.2)
        panel.plot([], [], ":", color=BLUE, linewidth=1.2, label="answers unchanged (right axis)")
        second.set_ylabel("answers unchanged (%)", color=BLUE)
        second.set_ylim(0, 105)
        second.spines["right"].set_visible(True)
    panel.set_ylabel("score")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw(options: argparse.Namespace) -> None:
    """Make the figure that the options ask for; print the files.

    Raises:
        FileNotFoundError, ValueError: numbers are missing or of another study.
    """
    if options.kind == "examples":
        if len(options.files) != 1:
            raise ValueError("A page of examples is made from one study.")
        print(write_page(options.files[0], options.out))
        return
    if options.kind == "manual":
        oracles = [OracleStudy.read(path) for path in options.oracle]
        figure = manual_exit_figure(read_records(options.files), oracles)
    else:
        studies = [AttentionStudy.read(path) for path in options.files]
        entropy = options.kind == "entropy"
        figure = entropy_figure(studies) if entropy else attention_figure(studies, options.measure)
    print(*save(figure, options.out), sep="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dyvte.study.plot", description="Figures of the studies.")
    parser.add_argument("kind", choices=("attention", "entropy", "manual", "examples"))
    files = "attention, entropy, examples: folders (or files) of studies; manual: records or their folders"
    parser.add_argument("files", nargs="+", type=Path, help=files)
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--measure", choices=["mass", "weight"], default="mass", help="of attention")
    oracle = "manual: studies of the oracle exit"
    parser.add_argument("--oracle", nargs="*", type=Path, default=[], help=oracle)
    run(parser, draw, arguments)


if __name__ == "__main__":
    main()
