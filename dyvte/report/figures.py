"""Figures from result records.

    python -m dyvte.report.figures exits RECORDS... --out exits.png
    python -m dyvte.report.figures tradeoff RECORDS... --out tradeoff.png

``exits``: histograms of exit layers (Fig. 6 of the paper). ``tradeoff``: score against decoder FLOPs, with fixed
exits. A name without ending is written as PNG and PDF. ``summary`` and :mod:`dyvte.reproduce` call it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dyvte import cli
from dyvte.cli import needs
from dyvte.report.compare import benchmarks_of, find, results_of
from dyvte.report.plotting import BLUE, GREY, ORANGE, note, save, styled
from dyvte.report.record import NO_EXIT, ResultRecord, read_records, records_parser
from dyvte.report.titles import AVERAGE, BASELINE, average_title, flops_unit, title_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def exit_shares(record: ResultRecord) -> list[float]:
    """Percent of samples by exit layer, and last of those without exit: num_layers + 1 numbers."""
    counts = [record.exit_layers.get(str(layer), 0) for layer in range(record.num_layers)]
    counts.append(record.exit_layers.get(NO_EXIT, 0))
    return [100 * count / record.num_samples for count in counts]


@styled
def exit_histograms(records: Sequence[ResultRecord]) -> Figure:
    """Histograms of exit layers: one panel for each DyVTE record; ValueError when there is no DyVTE record."""
    records = [record for record in records if record.method == "dyvte"]
    if not records:
        raise ValueError("None of the records is of DyVTE; run the evaluation with METHOD=dyvte.")
    size = (6.4, 1.9 * len(records) + 0.4)
    figure, grid = needs("matplotlib.pyplot", "study").subplots(
        len(records), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    panels = grid[:, 0]
    for panel, record in zip(panels, records, strict=True):
        layers, average = record.num_layers, record.mean_exit_layer
        places, colors = [*range(layers), layers + 0.5], [BLUE] * layers + [GREY]
        panel.bar(places, exit_shares(record), color=colors, width=0.85)
        panel.axvline(average, color=ORANGE, linewidth=1.5)
        place = {"xycoords": ("data", "axes fraction"), "color": ORANGE}
        note(panel, f"mean {average:.1f}", (average, 1), (4, -9), **place)
        title = f"{title_of(record.benchmark)}, {record.num_samples} questions"
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_ylabel("samples (%)")
        ticks = range(0, layers, 1 if layers <= 16 else 2 if layers <= 32 else 4)
        panel.set_xticks([*ticks, layers + 0.5], [*map(str, ticks), "none"])
    panels[-1].set_xlabel("layer after which the visual tokens exit")
    return figure


@styled
def tradeoff(records: Sequence[ResultRecord]) -> Figure:
    """Average score against decoder FLOPs: baseline, fixed exits, DyVTE; ValueError when no average is complete."""
    results = results_of(records)
    average = average_title(benchmarks_of(results)).replace("Average", "average score")
    results = [result for result in results if result.benchmark == AVERAGE]
    if not results:
        raise ValueError("No method has a record on every benchmark; run the missing ones.")
    factor, unit = flops_unit(result.decoder_tflops for result in results)
    figure, panel = needs("matplotlib.pyplot", "study").subplots(figsize=(6.4, 4), layout="constrained")
    for method, color, marker, size, name in (
        ("fixed", GREY, "o-", 4, "same layer for all samples"),
        (BASELINE, "black", "s", 6, "baseline"),
        ("dyvte", ORANGE, "*", 13, "DyVTE"),
    ):
        found = sorted(find(results, AVERAGE, method), key=lambda result: result.decoder_tflops)
        costs, scores = [factor * r.decoder_tflops for r in found], [r.score for r in found]
        panel.plot(costs, scores, marker, color=color, markersize=size, linewidth=1, label=name)
        if method == "fixed":
            for result, place in zip(found, zip(costs, scores, strict=True), strict=True):
                layer = result.label.rpartition(" ")[2]
                note(panel, layer, place, (3, -9), color=GREY, fontsize=7)
    panel.set_xlabel(f"decoder {unit} per sample")
    panel.set_ylabel(average)
    panel.legend(frameon=False, loc="lower right")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    make = {"exits": exit_histograms, "tradeoff": tradeoff}
    parser = records_parser("dyvte.report.figures", "Figures from result records.", figure=make)
    parser.add_argument("--out", type=Path, required=True, help="file to write; without ending PNG and PDF")

    def action(options: argparse.Namespace) -> None:
        for file in save(make[options.figure](read_records(options.records)), options.out):
            print(file)

    cli.run(parser, action, argv)


if __name__ == "__main__":
    main()
