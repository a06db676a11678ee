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
from dyvte.study.answered import Answered, Key, oracle_costs, read_all, read_oracle
from dyvte.study.dynamic_report import figure_of, markdown_of
from dyvte.study.files import write_result
from dyvte.study.paired import CONFIDENCE, Interval, Resamples, best_cheaper, interval, score_at

Values = dict[str, NDArray]
"""Benchmark -> (n,) of one method, or (n, P) of a family of settings."""


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


class Comparison:
    """All methods of a set of benchmarks on the same resamples.

    Args:
        answered: benchmark -> methods; each needs the baseline and the same fixed exit layers.
        resamples: of these benchmarks' questions.

    Raises:
        ValueError: a benchmark lacks the baseline or fixed exits.
    """

    def __init__(self, answered: Mapping[str, Sequence[Answered]], resamples: Resamples) -> None:
        self.resamples = resamples
        self.methods = {name: {m.label: m for m in methods} for name, methods in answered.items()}
        layers = {name: _fixed_layers(name, methods) for name, methods in answered.items()}
        if len({tuple(found) for found in layers.values()}) != 1:
            raise ValueError(
                "the benchmarks have different fixed exit layers: run dyvte.study.fixed_exits on all"
            )
        self.layers = [*map(str, next(iter(layers.values()))), "none"]
        families = {
            name: [*_fixed(methods).values(), _baseline(methods)] for name, methods in answered.items()
        }
        self.fixed_scores = {name: np.stack([m.scores for m in found], 1) for name, found in families.items()}
        self.fixed_costs = {name: np.stack([m.costs for m in found], 1) for name, found in families.items()}
        self.oracles: dict[str, Values] = {}

    def add_oracle(self, label: str, benchmark: str, layers: Mapping[Key, int]) -> None:
        """Add the oracle exits of a benchmark.

        Raises:
            ValueError: a fixed exit layer or a question is missing.
        """
        if len(self.layers) - 1 != next(iter(self.methods[benchmark].values())).record.num_layers:
            raise ValueError(
                "the oracle's cost needs every fixed exit layer: run fixed_exits without --layers"
            )
        keys = next(iter(self.methods[benchmark].values())).keys
        costs = oracle_costs(layers, keys, self.fixed_costs[benchmark])
        self.oracles.setdefault(label, {})[benchmark] = costs

    def scope(self, names: Sequence[str]) -> dict[str, Any]:
        """Numbers of some benchmarks together: the fixed exits, and each method that ran on all of them."""
        fixed_scores = self.resamples.means({name: self.fixed_scores[name] for name in names})
        fixed_costs = self.resamples.means({name: self.fixed_costs[name] for name in names})
        found = {
            label: self._means(names, label)
            for label in self.methods[names[0]]
            if all(label in self.methods[name] for name in names)
        }
        kinds = {label: self.methods[names[0]][label].record.method for label in found}
        gates = [means for label, means in found.items() if kinds[label] == "dyvte"]
        rows = []
        for label, (scores, costs) in found.items():
            if kinds[label] not in (BASELINE, "fixed"):
                over = None if kinds[label] == "dyvte" else _gates_over(gates, scores, costs)
                rows.append(self._row(label, kinds[label], scores, costs, fixed_scores, fixed_costs, over))
        for label, oracle in self.oracles.items():
            if all(name in oracle for name in names):
                costs = self.resamples.means({name: oracle[name] for name in names})
                scores = fixed_scores[:, -1]
                rows.append(self._row(label, "oracle", scores, costs, fixed_scores, fixed_costs, None))
        return {
            "questions": sum(len(self.fixed_scores[name]) for name in names),
            "layers": self.layers,
            "fixed_scores": fixed_scores[0].tolist(),
            "fixed_costs": fixed_costs[0].tolist(),
            "rows": [asdict(row) for row in rows],
        }

    def _means(self, names: Sequence[str], label: str) -> tuple[NDArray, NDArray]:
        """(R + 1,) scores and costs of a method."""
        own = {name: self.methods[name][label] for name in names}
        return (
            self.resamples.means({name: method.scores for name, method in own.items()}),
            self.resamples.means({name: method.costs for name, method in own.items()}),
        )

    def _row(
        self,
        label: str,
        method: str,
        scores: NDArray,
        costs: NDArray,
        fixed_scores: NDArray,
        fixed_costs: NDArray,
        gates_over: Interval | None,
    ) -> MethodComparison:
        chosen, fits = best_cheaper(fixed_costs, fixed_scores, costs)
        cheaper = np.take_along_axis(fixed_scores, chosen[:, None], 1)[:, 0]
        return MethodComparison(
            label=label,
            method=method,
            score=float(scores[0]),
            cost=float(costs[0]),
            over_fixed=interval(scores - score_at(fixed_costs, fixed_scores, costs)),
            fixed_layer=self.layers[chosen[0]] if fits[0] else None,
            over_cheaper=interval(scores - cheaper) if fits[0] else None,
            gates_over=gates_over,
        )


def _gates_over(gates: Sequence[tuple[NDArray, NDArray]], scores: NDArray, costs: NDArray) -> Interval | None:
    """DyVTE's curve at these costs, less these scores; None where all of the curve costs more."""
    if not gates or min(cost[0] for _, cost in gates) > costs[0]:
        return None
    curve_scores, curve_costs = (np.stack(parts, 1) for parts in zip(*gates, strict=True))
    return interval(score_at(curve_costs, curve_scores, costs) - scores)


def _baseline(methods: Sequence[Answered]) -> Answered:
    return next(method for method in methods if method.record.method == BASELINE)


def _fixed(methods: Sequence[Answered]) -> dict[int, Answered]:
    """Exit layer -> answers, ascending."""
    found = {int(m.record.settings["exit_layer"]): m for m in methods if m.record.method == "fixed"}
    return dict(sorted(found.items()))


def _fixed_layers(name: str, methods: Sequence[Answered]) -> list[int]:
    layers = list(_fixed(methods))
    if not layers or BASELINE not in {method.record.method for method in methods}:
        raise ValueError(
            f"{name} lacks the baseline or the fixed exits: run METHOD=none scripts/v1_5/eval/{name}.sh and "
            f"python -m dyvte.study.fixed_exits {name}"
        )
    return layers


def compare(
    answered: dict[str, list[Answered]], oracles: Sequence[Path], count: int, seed: int
) -> dict[str, Any]:
    """All numbers, by scope.

    Raises:
        FileNotFoundError, ValueError: something is missing, or does not belong together.
    """
    sizes = {name: len(methods[0].keys) for name, methods in answered.items()}
    comparison = Comparison(answered, Resamples(sizes, count, seed))
    model = next(iter(answered.values()))[0].record.model
    for path in oracles:
        of_model, benchmark, exits = read_oracle(path)
        if of_model != model:
            raise ValueError(f"{path} is of {of_model}, the records of {model}")
        for label, layers in exits.items() if benchmark in answered else ():
            comparison.add_oracle(label, benchmark, layers)
    names = list(answered)
    scopes = {AVERAGE: comparison.scope(names)} if len(names) > 1 else {}
    scopes |= {name: comparison.scope([name]) for name in names}
    settings = {"resamples": count, "seed": seed, "confidence": CONFIDENCE}
    return {"model": model, "definitions": __doc__, **settings, "scopes": scopes}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.study.dynamic", description="Exits per question against one exit layer for all."
    )
    parser.add_argument("records", nargs="+", type=Path, help="record files, or folders that hold some")
    parser.add_argument("--oracle", nargs="*", type=Path, default=[], help="folders of dyvte.study.oracle")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)

    def action(args: argparse.Namespace) -> None:
        if args.resamples < 1:
            raise ValueError(f"--resamples must be positive, got {args.resamples}")
        result = compare(read_all(args.records), args.oracle, args.resamples, args.seed)
        write_result(args.output, "dynamic", result, markdown_of(result), figure_of(result))

    run(parser, action, arguments)


if __name__ == "__main__":
    main()
