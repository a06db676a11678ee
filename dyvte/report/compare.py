"""Compares the methods of one model, per benchmark and on average, from result records.

Called by :mod:`dyvte.report.table`, :mod:`dyvte.report.figures`, :mod:`dyvte.report.summary` and
:mod:`dyvte.study.pareto`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dyvte.benchmarks.benchmark import mean
from dyvte.report.record import ResultRecord
from dyvte.report.titles import AVERAGE, BASELINE, average_title, averaged, label_of


@dataclass(frozen=True)
class MethodResult:
    """One method on one benchmark, or ``AVERAGE``; costs and seconds are means per sample."""

    benchmark: str
    method: str
    label: str
    score: float
    tflops: float
    decoder_tflops: float
    exit_layer: float
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """How DyVTE compares on average with the baseline, and with fixed exits of the same or lower cost.

    ``saved_compute`` is a share of the decoder's FLOPs. Fixed exits are chosen by the cost of the whole prefill, so
    that gates count against DyVTE. ``average`` names the benchmarks left out of it.
    """

    kept_score: float
    saved_compute: float
    average: str
    best_cheaper_exit: MethodResult | None
    above_cheaper_exits: bool


def results_of(records: Iterable[ResultRecord]) -> list[MethodResult]:
    """One result for each record, and an average for each method that ran on all benchmarks.

    As in the paper, an average is the mean over the benchmarks scored in percent, so without MME.

    Raises:
        ValueError: the records are of several models, or two of them are of one benchmark and method.
    """
    records = list(records)
    models = sorted({record.model for record in records})
    if len(models) != 1:
        raise ValueError(f"A comparison is of one model; these records are of {', '.join(models) or 'none'}.")
    results = [
        MethodResult(
            *(r.benchmark, r.method, label_of(r)),
            *(r.score, r.tflops, r.decoder_tflops, r.mean_exit_layer, r.seconds),
        )
        for r in records
    ]
    by_label: dict[str, dict[str, MethodResult]] = {}
    for result in results:
        row = by_label.setdefault(result.label, {})
        if row.setdefault(result.benchmark, result) is not result:
            raise ValueError(
                f"There are two records of {result.label!r} on {result.benchmark}; name one of them only."
            )
    covered = averaged(benchmarks_of(results))
    for row in by_label.values():
        if row.keys() >= set(covered):
            group = [result for name, result in row.items() if name in covered]
            names = ("score", "tflops", "decoder_tflops", "exit_layer", "seconds")
            means = {name: mean([getattr(result, name) for result in group]) for name in names}
            results.append(replace(group[0], benchmark=AVERAGE, **means))
    return results


def benchmarks_of(results: Iterable[MethodResult]) -> list[str]:
    """Their benchmarks, without the average."""
    return list(dict.fromkeys(result.benchmark for result in results if result.benchmark != AVERAGE))


def find(results: Iterable[MethodResult], benchmark: str, method: str) -> list[MethodResult]:
    """The results of a method on a benchmark (or ``AVERAGE``)."""
    return [result for result in results if result.benchmark == benchmark and result.method == method]


def verdict(results: Sequence[MethodResult]) -> Verdict:
    """Compare DyVTE with the baseline and the fixed exits, all on average over the benchmarks.

    Raises:
        ValueError: baseline or DyVTE has no result on every benchmark.
    """
    baselines, dynamic = find(results, AVERAGE, BASELINE), find(results, AVERAGE, "dyvte")
    if not baselines or not dynamic:
        raise ValueError("A verdict needs the baseline and DyVTE on every benchmark; run the missing ones.")
    baseline, ours = baselines[0], dynamic[0]
    cheaper = [result for result in find(results, AVERAGE, "fixed") if result.tflops <= ours.tflops]
    best = max(cheaper, key=lambda result: result.score, default=None)
    return Verdict(
        kept_score=ours.score / baseline.score if baseline.score else 0.0,
        saved_compute=1 - ours.decoder_tflops / baseline.decoder_tflops,
        average=average_title(benchmarks_of(results)),
        best_cheaper_exit=best,
        above_cheaper_exits=best is None or ours.score > best.score,
    )


def sentence_of(result: Verdict) -> str:
    best = result.best_cheaper_exit
    fixed = "no fixed exit layer costs as little"
    if best is not None:
        relation = "above" if result.above_cheaper_exits else "not above"
        fixed = (
            f"it is {relation} the best fixed exit of the same or lower cost "
            f"({best.label.lower()}: {best.score:.2f})"
        )
    return (
        f"DyVTE keeps {100 * result.kept_score:.1f}% of the baseline's average score"
        f"{result.average.removeprefix('Average')} and computes {100 * result.saved_compute:.1f}% fewer FLOPs in the "
        f"decoder; {fixed}."
    )
