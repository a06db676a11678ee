"""Records side by side: per benchmark and on average, each run against the baseline of the same model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dyvte.benchmarks.benchmark import mean
from dyvte.report.record import ResultRecord

AVERAGE = "average"
BASELINE = "none"
KEPT_SCORE = 0.98
SAVED_COMPUTE = 0.35
TITLES = {
    "fastv": "FastV",
    "pooling": "Pooling",
    "pyramiddrop": "PyramidDrop",
    "random": "Random dropping",
    "stability": "VisiPruner exit",
    "tome": "ToMe",
    "vtw": "VTW",
}
"""Methods of ``dyvte.reduction`` as people read them."""


@dataclass(frozen=True)
class Run:
    """What tables and figures show of one run; costs and seconds are means per sample."""

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
    """How DyVTE on average compares with the baseline, and with fixed exits of the same or lower cost.

    The saved compute is the decoder's. Fixed exits are chosen by the cost of the whole prefill, so that gates
    count against DyVTE.
    """

    kept_score: float
    saved_compute: float
    best_cheaper_exit: Run | None
    above_cheaper_exits: bool

    @property
    def reached(self) -> bool:
        """Whether all three targets hold."""
        return (
            self.kept_score >= KEPT_SCORE and self.saved_compute >= SAVED_COMPUTE and self.above_cheaper_exits
        )


def label_of(record: ResultRecord) -> str:
    """The method as people read it."""
    if record.method == BASELINE:
        return "Baseline"
    label = " + ".join(_part_label(part, record.settings) for part in record.method.split("+"))
    config = record.settings.get("method_config", "")
    return f"{label} ({', '.join(config.split())})" if config else label


def _part_label(part: str, settings: Mapping[str, str]) -> str:
    """One of the methods that a record's method joins."""
    if part == "fixed":
        return f"Exit after layer {settings['exit_layer']}"
    if part in TITLES:
        return TITLES[part]
    threshold = float(settings.get("threshold", 0.5))
    return "DyVTE" if threshold == 0.5 else f"DyVTE, threshold {threshold:g}"


def runs_of(records: Iterable[ResultRecord]) -> list[Run]:
    """One run for each record, and for each method an average over benchmarks (plain mean, as in the paper)
    when it has run on all of them.

    Raises:
        ValueError: the records are of several models, or two of them are of one benchmark and method.
    """
    records = list(records)
    models = sorted({record.model for record in records})
    if len(models) != 1:
        raise ValueError(f"A comparison is of one model; these records are of {', '.join(models) or 'none'}.")
    runs = [
        Run(
            record.benchmark,
            record.method,
            label_of(record),
            record.score,
            record.tflops,
            record.decoder_tflops,
            record.mean_exit_layer,
            record.seconds,
        )
        for record in records
    ]
    places = [(run.benchmark, run.label) for run in runs]
    if len(set(places)) < len(places):
        double = next(place for place in places if places.count(place) > 1)
        raise ValueError(f"There are two records of {double[1]!r} on {double[0]}; name one of them only.")
    return runs + _averages(runs)


def find(runs: Iterable[Run], benchmark: str, method: str) -> list[Run]:
    """The runs of a method on a benchmark (or ``AVERAGE``)."""
    return [run for run in runs if run.benchmark == benchmark and run.method == method]


def verdict(runs: Sequence[Run]) -> Verdict:
    """Compare DyVTE with the baseline and the fixed exits, all on average over the benchmarks.

    Raises:
        ValueError: baseline or DyVTE has no run on every benchmark.
    """
    baselines, dynamic = find(runs, AVERAGE, BASELINE), find(runs, AVERAGE, "dyvte")
    if not baselines or not dynamic:
        raise ValueError("A verdict needs the baseline and DyVTE on every benchmark; run the missing ones.")
    baseline, ours = baselines[0], dynamic[0]
    cheaper = [run for run in find(runs, AVERAGE, "fixed") if run.tflops <= ours.tflops]
    best = max(cheaper, key=lambda run: run.score, default=None)
    return Verdict(
        kept_score=ours.score / baseline.score if baseline.score else 0.0,
        saved_compute=1 - ours.decoder_tflops / baseline.decoder_tflops,
        best_cheaper_exit=best,
        above_cheaper_exits=best is None or ours.score > best.score,
    )


def sentence_of(result: Verdict) -> str:
    """The verdict in words, with what it is measured against."""
    best = result.best_cheaper_exit
    fixed = "no fixed exit layer costs as little"
    if best is not None:
        relation = "above" if result.above_cheaper_exits else "not above"
        fixed = (
            f"it is {relation} the best fixed exit of the same or lower cost "
            f"({best.label.lower()}: {best.score:.2f})"
        )
    return (
        f"DyVTE keeps {100 * result.kept_score:.1f}% of the baseline's average score "
        f"(target: {100 * KEPT_SCORE:.0f}%) and computes {100 * result.saved_compute:.1f}% fewer FLOPs "
        f"in the decoder (target: {100 * SAVED_COMPUTE:.0f}%); {fixed}. "
        f"{'All targets reached.' if result.reached else 'Not all targets are reached.'}"
    )


def _averages(runs: Sequence[Run]) -> list[Run]:
    benchmarks = {run.benchmark for run in runs}
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        by_label.setdefault(run.label, []).append(run)
    return [
        Run(
            AVERAGE,
            group[0].method,
            label,
            mean([run.score for run in group]),
            mean([run.tflops for run in group]),
            mean([run.decoder_tflops for run in group]),
            mean([run.exit_layer for run in group]),
            mean([run.seconds for run in group]),
        )
        for label, group in by_label.items()
        if len(group) == len(benchmarks)
    ]
