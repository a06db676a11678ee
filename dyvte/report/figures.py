"""Figures from result records.

    python -m dyvte.report.figures exits RECORDS... --out exits.png
    python -m dyvte.report.figures tradeoff RECORDS... --out tradeoff.png

``exits``: where samples exit (Fig. 6 of the paper). ``tradeoff``: score against decoder FLOPs, with fixed exits.

A name without ending is written as PNG and as PDF.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dyvte import cli
from dyvte.cli import extra
from dyvte.report.compare import benchmarks_of, find, results_of
from dyvte.report.plotting import BLUE, GREY, ORANGE, STYLE, save
from dyvte.report.record import NO_EXIT, ResultRecord, add_records, read_records
from dyvte.report.titles import AVERAGE, BASELINE, average_title, flops_unit, title_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def exit_shares(record: ResultRecord) -> list[float]:
    """Percent of samples by exit layer, and at the end those without an exit: num_layers + 1 numbers."""
    counts = [record.exit_layers.get(str(layer), 0) for layer in range(record.num_layers)]
    counts.append(record.exit_layers.get(NO_EXIT, 0))
    return [100 * count / record.num_samples for count in counts]


def exit_histograms(records: Sequence[ResultRecord]) -> Figure:
    """Where samples exit: one panel for each DyVTE record.

    Raises:
        ValueError: there is no DyVTE record.
    """
    records = [record for record in records if record.method == "dyvte"]
    if not records:
        raise ValueError("None of the records is of DyVTE; run the evaluation with METHOD=dyvte.")
    with extra("study"):
        from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, grid = pyplot.subplots(
            len(records),
            1,
            figsize=(6.4, 1.9 * len(records) + 0.4),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
    panels = grid[:, 0]
    for panel, record in zip(panels, records, strict=True):
        shares = exit_shares(record)
        panel.bar(range(record.num_layers), shares[:-1], color=BLUE, width=0.85)
        panel.bar(record.num_layers + 0.5, shares[-1], color=GREY, width=0.85)
        panel.axvline(record.mean_exit_layer, color=ORANGE, linewidth=1.5)
        panel.annotate(
            f"mean {record.mean_exit_layer:.1f}",
            (record.mean_exit_layer, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -9),
            textcoords="offset points",
            color=ORANGE,
        )
        panel.set_title(
            f"{title_of(record.benchmark)}, {record.num_samples} questions", loc="left", fontsize=10
        )
        panel.set_ylabel("samples (%)")
        step = 1 if record.num_layers <= 16 else 2 if record.num_layers <= 32 else 4
        ticks = list(range(0, record.num_layers, step))
        panel.set_xticks([*ticks, record.num_layers + 0.5], [*map(str, ticks), "none"])
    panels[-1].set_xlabel("layer after which the visual tokens exit")
    return figure


def tradeoff(records: Sequence[ResultRecord]) -> Figure:
    """Average score against the decoder's FLOPs: baseline, every fixed exit layer, DyVTE.

    Raises:
        ValueError: no method has run on every benchmark.
    """
    with extra("study"):
        from matplotlib import pyplot

    results = results_of(records)
    average = average_title(benchmarks_of(results)).replace("Average", "average score")
    results = [result for result in results if result.benchmark == AVERAGE]
    if not results:
        raise ValueError("No method has a record on every benchmark; run the missing ones.")
    factor, unit = flops_unit(result.decoder_tflops for result in results)
    with pyplot.rc_context(STYLE):
        figure, panel = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
        fixed = sorted(find(results, AVERAGE, "fixed"), key=lambda result: result.decoder_tflops)
        panel.plot(
            [factor * result.decoder_tflops for result in fixed],
            [result.score for result in fixed],
            "o-",
            color=GREY,
            markersize=4,
            linewidth=1,
            label="same layer for all samples",
        )
        for result in fixed:
            layer = result.label.rpartition(" ")[2]
            place = (factor * result.decoder_tflops, result.score)
            panel.annotate(layer, place, xytext=(3, -9), textcoords="offset points", color=GREY, fontsize=7)
        for method, color, marker, name in (
            (BASELINE, "black", "s", "baseline"),
            ("dyvte", ORANGE, "*", "DyVTE"),
        ):
            found = find(results, AVERAGE, method)
            panel.plot(
                [factor * result.decoder_tflops for result in found],
                [result.score for result in found],
                marker,
                color=color,
                markersize=13 if marker == "*" else 6,
                label=name,
            )
        panel.set_xlabel(f"decoder {unit} per sample")
        panel.set_ylabel(average)
        panel.legend(frameon=False, loc="lower right")
    return figure


def draw(options: argparse.Namespace) -> None:
    """Make and write one figure; print its files."""
    make = {"exits": exit_histograms, "tradeoff": tradeoff}[options.figure]
    for file in save(make(read_records(options.records)), options.out):
        print(file)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.figures", description="Figures from result records."
    )
    parser.add_argument("figure", choices=["exits", "tradeoff"])
    add_records(parser)
    parser.add_argument("--out", type=Path, required=True, help="file to write; without ending PNG and PDF")
    cli.run(parser, draw, argv)


if __name__ == "__main__":
    main()
