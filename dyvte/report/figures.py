"""Figures from result records.

python -m dyvte.report.figures exits RECORDS... --out exits.png        where samples exit (Fig. 6 of the
paper) python -m dyvte.report.figures tradeoff RECORDS... --out tradeoff.png  score against decoder FLOPs,
with fixed exits
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyvte.report.compare import AVERAGE, BASELINE, find, runs_of
from dyvte.report.record import NO_EXIT, ResultRecord, read_records
from dyvte.report.table import title_of

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
    figure, panels = _panels(len(records), height=1.9)
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
    from matplotlib import pyplot

    runs = [run for run in runs_of(records) if run.benchmark == AVERAGE]
    if not runs:
        raise ValueError("No method has a record on every benchmark; run the missing ones.")
    factor, unit = (1000.0, "GFLOPs") if max(run.decoder_tflops for run in runs) < 0.1 else (1.0, "TFLOPs")
    with pyplot.rc_context(STYLE):
        figure, panel = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
        fixed = sorted(find(runs, AVERAGE, "fixed"), key=lambda run: run.decoder_tflops)
        panel.plot(
            [factor * run.decoder_tflops for run in fixed],
            [run.score for run in fixed],
            "o-",
            color=GREY,
            markersize=4,
            linewidth=1,
            label="same layer for all samples",
        )
        for run in fixed:
            layer = run.label.rpartition(" ")[2]
            place = (factor * run.decoder_tflops, run.score)
            panel.annotate(layer, place, xytext=(3, -9), textcoords="offset points", color=GREY, fontsize=7)
        for method, colour, marker, name in (
            (BASELINE, "black", "s", "baseline"),
            ("dyvte", ORANGE, "*", "DyVTE"),
        ):
            found = find(runs, AVERAGE, method)
            panel.plot(
                [factor * run.decoder_tflops for run in found],
                [run.score for run in found],
                marker,
                color=colour,
                markersize=13 if marker == "*" else 6,
                label=name,
            )
        panel.set_xlabel(f"decoder {unit} per sample")
        panel.set_ylabel("average score")
        panel.legend(frameon=False, loc="lower right")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure (PNG, PDF or SVG by the name's ending) and let go of it."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A column of panels with one vertical axis, ``height`` inches each."""
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, grid = pyplot.subplots(
            count, 1, figsize=(6.4, height * count + 0.4), sharey=True, squeeze=False, layout="constrained"
        )
    return figure, list(grid[:, 0])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.figures", description="Figures from result records."
    )
    parser.add_argument("figure", choices=["exits", "tradeoff"])
    parser.add_argument(
        "records", nargs="+", type=Path, help="record files, or folders that hold record.json files"
    )
    parser.add_argument("--out", type=Path, required=True, help="PNG or PDF to write")
    options = parser.parse_args(arguments)

    try:
        records = read_records(options.records)
        figure = exit_histograms(records) if options.figure == "exits" else tradeoff(records)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    save(figure, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
