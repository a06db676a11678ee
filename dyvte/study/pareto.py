"""Score against FLOPs of every method, with the Pareto front marked, from result records.

python -m dyvte.study.pareto RECORDS... --out pareto        (PNG and PDF)

A method is on the front when no other has at least its score at no more FLOPs, and one of the two better.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dyvte.cli import needs, run
from dyvte.report.compare import MethodResult, benchmarks_of, results_of
from dyvte.report.plotting import BLUE, GREY, ORANGE, STYLE, save
from dyvte.report.record import read_records, records_parser
from dyvte.report.titles import AVERAGE, BASELINE, average_title, averaged, flops_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other dominates, by ascending cost.

    Args:
        points: (cost, score) each; of equal points all are on the front, or none.

    Returns:
        Their indices.
    """

    def dominated(cost: float, score: float) -> bool:
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)

    return sorted((i for i, point in enumerate(points) if not dominated(*point)), key=lambda i: points[i])


def figure_of(runs: Sequence[MethodResult]) -> Figure:
    """Average score (or, of one benchmark, its score) against TFLOPs of the whole prefill.

    Raises:
        ValueError: no method has run on every benchmark.
    """
    pyplot = needs("matplotlib.pyplot", "study")

    chosen = [run for run in runs if run.benchmark == AVERAGE]
    if not chosen:
        raise ValueError("No method has a record on every benchmark; run the missing ones.")
    benchmarks = benchmarks_of(runs)
    count, average = len(averaged(benchmarks)), average_title(benchmarks).replace("Average", "average score")
    factor, unit = flops_unit([run.tflops for run in chosen])
    points = [(factor * run.tflops, run.score) for run in chosen]
    front = pareto_front(points)
    with pyplot.rc_context(STYLE):
        figure, panel = pyplot.subplots(figsize=(9, 4.4), layout="constrained")
        panel.step(
            *zip(*(points[i] for i in front), strict=True),
            where="post",
            color=GREY,
            linewidth=1,
            label="Pareto front",
        )
        # numbers at the points, names in the legend: the best methods lie close together
        for number, index in enumerate(sorted(range(len(points)), key=points.__getitem__), 1):
            run, point = chosen[index], points[index]
            ours = "dyvte" in run.method.split("+")
            color = ORANGE if ours else "black" if run.method == BASELINE else BLUE
            face = color if index in front else "white"
            panel.plot(
                *point,
                "*" if ours else "o",
                color=color,
                markerfacecolor=face,
                markersize=11 if ours else 6,
                label=f"{number}  {run.label}",
            )
            above = number % 2 == 0
            panel.annotate(
                str(number),
                point,
                xytext=(0, 7 if above else -7),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=7,
                color=color,
            )
        panel.margins(0.08)
        panel.set_xlabel(f"{unit} per sample (whole prefill); filled: on the front")
        panel.set_ylabel(f"{average} over {count} benchmarks" if count > 1 else "score")
        figure.legend(frameon=False, loc="outside right upper", fontsize=7)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = records_parser("dyvte.study.pareto", "Score against FLOPs of every method.")
    parser.add_argument("--out", type=Path, required=True, help="file to write; without ending PNG and PDF")

    def action(args: argparse.Namespace) -> None:
        for file in save(figure_of(results_of(read_records(args.records))), args.out):
            print(file)

    run(parser, action, arguments)


if __name__ == "__main__":
    main()
