"""Score against FLOPs of every method, with the Pareto front marked, from result records.

python -m dyvte.study.pareto RECORDS... --out pareto        (PNG and PDF)

A method is on the front when no other has at least its score at no more FLOPs, and one of the two better.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dyvte.cli import extra, run
from dyvte.report.compare import MethodResult, benchmarks_of, results_of
from dyvte.report.plotting import BLUE, GREY, ORANGE, number_point, save, styled
from dyvte.report.record import read_records, records_parser
from dyvte.report.titles import AVERAGE, BASELINE, average_title, averaged, flops_unit

with extra("study"):
    from matplotlib import pyplot
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


@styled
def figure_of(results: Sequence[MethodResult]) -> Figure:
    """Average score (or, of one benchmark, its score) against TFLOPs of the whole prefill.

    Raises:
        ValueError: no method has run on every benchmark.
    """
    chosen = [result for result in results if result.benchmark == AVERAGE]
    if not chosen:
        raise ValueError("No method has a record on every benchmark; run the missing ones.")
    benchmarks = benchmarks_of(results)
    count, average = len(averaged(benchmarks)), average_title(benchmarks).replace("Average", "average score")
    factor, unit = flops_unit([result.tflops for result in chosen])
    points = [(factor * result.tflops, result.score) for result in chosen]
    front = pareto_front(points)
    figure, panel = pyplot.subplots(figsize=(9, 4.4), layout="constrained")
    steps = zip(*(points[i] for i in front), strict=True)
    panel.step(*steps, where="post", color=GREY, linewidth=1, label="Pareto front")
    # numbers at the points, names in the legend: the best methods lie close together
    for number, index in enumerate(sorted(range(len(points)), key=points.__getitem__), 1):
        method = chosen[index].method
        ours = "dyvte" in method.split("+")
        color = ORANGE if ours else "black" if method == BASELINE else BLUE
        marker, size = ("*", 11) if ours else ("o", 6)
        face, label = color if index in front else "white", f"{number}  {chosen[index].label}"
        panel.plot(*points[index], marker, color=color, markerfacecolor=face, markersize=size, label=label)
        number_point(panel, points[index], [number], distance=7, fontsize=7, color=color)
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
