"""What does *dynamic* buy? Exits chosen per question against one exit layer for all, at equal cost.

python -m dyvte.study.dynamic RECORDS... --output DIR [--oracle STUDIES...] [--resamples 2000] [--seed 0]

RECORDS hold, for each benchmark, the baseline, every fixed exit layer (``dyvte.study.fixed_exits``), DyVTE with one
or more thresholds, and any other methods; answers and scores of each question lie beside them. No model runs. Each
method is compared with

- the fixed exits at its own mean cost, interpolated between the two neighbouring layers (``over_fixed``);
- the best fixed exit layer that costs no more (``over_cheaper``), chosen on these same questions, and anew in each
  resample, so that the interval covers the choice;
- and each method without gates with DyVTE's thresholds, interpolated at its cost (``gates_over``).

All on questions with an image, with 95% intervals by paired bootstrap (``paired.py``). Scores are means over
questions, in percent: accuracy for POPE and MME, whose headline numbers are others. The oracle has the baseline's
answers. ``OUTPUT/dynamic.json`` holds the numbers, from which ``dynamic.md``, ``.png`` and ``.pdf`` are made.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyvte.cli import run
from dyvte.report.titles import AVERAGE, BASELINE
from dyvte.study.answered import Answered, fixed_exits, read_all
from dyvte.study.dynamic_report import figure_of, markdown_of
from dyvte.study.files import write_result
from dyvte.study.paired import CONFIDENCE, Interval, Resamples, best_cheaper, interval, score_at


@dataclass(frozen=True)
class MethodComparison:
    """One method in one scope (a benchmark, or the average over all); costs in TFLOPs of the whole prefill.

    Attributes:
        fixed_layer: the best fixed exit that costs no more, on all questions; "none" for no exit, None where even
            layer 0 costs more.
        gates_over: DyVTE at this method's cost, less this method; None for DyVTE and the oracle, and where every
            threshold costs more.
    """

    label: str
    method: str
    score: float
    cost: float
    over_fixed: Interval
    fixed_layer: str | None
    over_cheaper: Interval | None
    gates_over: Interval | None


@dataclass(frozen=True)
class Means:
    """Means on every resample: (R + 1,) scores and costs of one setting, (R + 1, P) of a curve of settings."""

    scores: NDArray
    costs: NDArray

    @classmethod
    def of(cls, resamples: Resamples, on_each: Mapping[str, Answered]) -> Means:
        """Of one setting, by benchmark."""
        scores, costs = (
            resamples.means({name: getattr(method, part) for name, method in on_each.items()})
            for part in ("scores", "costs")
        )
        return cls(scores, costs)

    @classmethod
    def curve(cls, settings: Sequence[Means]) -> Means:
        """Of several settings together."""
        return cls(
            np.stack([own.scores for own in settings], 1), np.stack([own.costs for own in settings], 1)
        )

    def at(self, costs: NDArray) -> NDArray:
        """(R + 1,) the curve's score at each resample's own cost."""
        return score_at(self.costs, self.scores, costs)


def scope_of(answered: Mapping[str, Sequence[Answered]], resamples: Resamples) -> dict[str, Any]:
    """Numbers of these benchmarks together: the fixed exits, and each method that ran on all of them.

    Args:
        resamples: of these benchmarks' questions and maybe others'.

    Raises:
        ValueError: a benchmark lacks the baseline or fixed exits, or has others than the next.
    """
    families = {name: fixed_exits(name, methods) for name, methods in answered.items()}
    found_layers = {tuple(method.exit_layer for method in family) for family in families.values()}
    if len(found_layers) != 1:
        raise ValueError(
            "the benchmarks have different fixed exit layers: run dyvte.study.fixed_exits on all"
        )
    layers = ["none" if layer is None else str(layer) for layer in found_layers.pop()]
    settings = zip(*families.values(), strict=True)
    fixed = Means.curve([Means.of(resamples, dict(zip(families, own, strict=True))) for own in settings])
    by_label = {name: {method.label: method for method in methods} for name, methods in answered.items()}
    first, *others = by_label.values()
    found = {
        label: (method.method, Means.of(resamples, {name: own[label] for name, own in by_label.items()}))
        for label, method in first.items()
        if method.method not in (BASELINE, "fixed") and all(label in other for other in others)
    }
    gates = [means for method, means in found.values() if method == "dyvte"]
    rows = []
    for label, (method, own) in found.items():
        chosen, fits = best_cheaper(fixed.costs, fixed.scores, own.costs)
        cheaper = np.take_along_axis(fixed.scores, chosen[:, None], 1)[:, 0]
        compared = gates if method not in ("dyvte", "oracle") else []
        reached = min((curve.costs[0] for curve in compared), default=np.inf) <= own.costs[0]
        row = MethodComparison(
            label=label,
            method=method,
            score=float(own.scores[0]),
            cost=float(own.costs[0]),
            over_fixed=interval(own.scores - fixed.at(own.costs)),
            fixed_layer=layers[chosen[0]] if fits[0] else None,
            over_cheaper=interval(own.scores - cheaper) if fits[0] else None,
            gates_over=interval(Means.curve(gates).at(own.costs) - own.scores) if reached else None,
        )
        rows.append(asdict(row))
    return {
        "questions": sum(len(family[0].keys) for family in families.values()),
        "layers": layers,
        "fixed_scores": fixed.scores[0].tolist(),
        "fixed_costs": fixed.costs[0].tolist(),
        "rows": rows,
    }


def compare(args: argparse.Namespace) -> None:
    """Write all numbers, by scope, with table and figure.

    Raises:
        FileNotFoundError, ValueError: something is missing, or does not belong together.
    """
    if args.resamples < 1:
        raise ValueError(f"--resamples must be positive, got {args.resamples}")
    model, answered = read_all(args.records, args.oracle)
    sizes = {name: len(methods[0].keys) for name, methods in answered.items()}
    resamples = Resamples(sizes, args.resamples, args.seed)
    scopes = {AVERAGE: scope_of(answered, resamples)} if len(answered) > 1 else {}
    scopes |= {name: scope_of({name: methods}, resamples) for name, methods in answered.items()}
    settings = {"resamples": args.resamples, "seed": args.seed, "confidence": CONFIDENCE}
    result = {"model": model, "definitions": __doc__, **settings, "scopes": scopes}
    write_result(args.output, "dynamic", result, markdown_of(result), figure_of(result))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.study.dynamic", description="Exits per question against one exit layer for all."
    )
    parser.add_argument("records", nargs="+", type=Path, help="record files, or folders that hold some")
    parser.add_argument("--oracle", nargs="*", type=Path, default=[], help="folders of dyvte.study.oracle")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    run(parser, compare, arguments)


if __name__ == "__main__":
    main()
