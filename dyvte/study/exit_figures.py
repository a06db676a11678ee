"""Score against the exit layer (Fig. 4 of the paper): every fixed layer, and what a choice per question reaches.

Called by :mod:`dyvte.study.plot`.
"""

from __future__ import annotations

from collections.abc import Sequence

from dyvte.cli import extra
from dyvte.report.plotting import BLUE, GREY, ORANGE, styled
from dyvte.report.record import ResultRecord
from dyvte.report.titles import BASELINE, model_title, title_of
from dyvte.study.oracle import OracleStudy

with extra("study"):
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator


@styled
def manual_exit_figure(records: Sequence[ResultRecord], oracles: Sequence[OracleStudy] = ()) -> Figure:
    """One panel for each model and benchmark.

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
        _draw(panel, here, oracle_of.get((model, benchmark)))
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


def _draw(panel: Axes, records: Sequence[ResultRecord], oracle: OracleStudy | None) -> None:
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
