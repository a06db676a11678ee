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
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dyvte.cli import extra, run
from dyvte.report.plotting import BLUE, GREY, ORANGE, note, styled
from dyvte.report.record import records_parser
from dyvte.report.tables import NOTHING, to_markdown
from dyvte.report.titles import AVERAGE, BASELINE, flops_unit, model_title, title_of
from dyvte.study.answered import Answered, fixed_exits, read_all
from dyvte.study.files import write_result
from dyvte.study.paired import CONFIDENCE, Resamples, best_cheaper, interval, score_at

with extra("study"):
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPARED = {
    "Over fixed exits, equal cost": "over_fixed",
    "Best fixed exit, same or lower cost": "fixed_layer",
    "Over it": "over_cheaper",
    "DyVTE over it, equal cost": "gates_over",
}
"""Heading of a column -> key of a method in :func:`scope_of`."""


class Means(NamedTuple):
    """Means on every resample: (R + 1,) scores and costs of one setting, (R + 1, P) of a curve of settings."""

    scores: NDArray
    costs: NDArray

    @classmethod
    def of(cls, resamples: Resamples, on_each: Mapping[str, Answered]) -> Means:
        """Of one setting, by benchmark."""
        parts = ({name: getattr(method, part) for name, method in on_each.items()} for part in cls._fields)
        return cls(*map(resamples.means, parts))

    @classmethod
    def curve(cls, settings: Sequence[Means]) -> Means:
        """Of several settings together."""
        return cls(*(np.stack(part, 1) for part in zip(*settings, strict=True)))

    def at(self, costs: NDArray) -> NDArray:
        """(R + 1,) the curve's score at each resample's own cost."""
        return score_at(self.costs, self.scores, costs)


def scope_of(answered: Mapping[str, Sequence[Answered]], resamples: Resamples) -> dict[str, Any]:
    """Numbers of these benchmarks together: the fixed exits, and each method that ran on all of them.

    Args:
        resamples: of these benchmarks' questions and maybe others'.

    Returns:
        costs in TFLOPs of the whole prefill; of each method in "rows", "fixed_layer" is the best fixed exit that
        costs no more, on all questions ("none" for no exit, None where even layer 0 costs more), and "gates_over" is
        DyVTE at its cost, less it (None for DyVTE and the oracle, and where every threshold costs more).

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
    cheapest = min((own.costs[0] for own in gates), default=np.inf)
    rows = []
    for label, (method, own) in found.items():
        chosen, fits = best_cheaper(fixed.costs, fixed.scores, own.costs)
        cheaper = np.take_along_axis(fixed.scores, chosen[:, None], 1)[:, 0]
        reached = method not in ("dyvte", "oracle") and cheapest <= own.costs[0]
        gain = interval(Means.curve(gates).at(own.costs) - own.scores) if reached else None
        row = {
            "label": label,
            "method": method,
            "score": float(own.scores[0]),
            "cost": float(own.costs[0]),
            "over_fixed": asdict(interval(own.scores - fixed.at(own.costs))),
            "fixed_layer": layers[chosen[0]] if fits[0] else None,
            "over_cheaper": asdict(interval(own.scores - cheaper)) if fits[0] else None,
            "gates_over": gain and asdict(gain),
        }
        rows.append(row)
    return {
        "questions": sum(len(family[0].keys) for family in families.values()),
        "layers": layers,
        "fixed_scores": fixed.scores[0].tolist(),
        "fixed_costs": fixed.costs[0].tolist(),
        "rows": rows,
    }


def markdown_of(result: Mapping[str, Any]) -> str:
    """The section of a report: a sentence for each scope, and one table."""
    scopes = result["scopes"]
    factor, unit = flops_unit([cost for scope in scopes.values() for cost in scope["fixed_costs"]])
    rows = [["Benchmark", "Method", "Score", unit, *COMPARED]]
    for name, scope in scopes.items():
        baseline: dict[str, Any] = {
            "label": "Baseline",
            "score": scope["fixed_scores"][-1],
            "cost": scope["fixed_costs"][-1],
        }
        for row in (baseline, *scope["rows"]):
            names = [title_of(name), row["label"], f"{row['score']:.2f}", f"{factor * row['cost']:.3g}"]
            rows.append([*names, *(_text(row.get(key)) for key in COMPARED.values())])
    sentences = [text for name, scope in scopes.items() if (text := _sentence(title_of(name), scope))]
    return (
        f"## What does dynamic buy? {model_title(result['model'])}\n\n"
        + "\n".join(f"- {sentence}" for sentence in sentences)
        + f"\n\n{to_markdown(rows)}\n"
        f"In brackets: {100 * result['confidence']:.0f}% intervals over questions, by paired bootstrap "
        f"({result['resamples']} resamples, seed {result['seed']}). Scores are means over questions with an image. "
        "Equal cost: interpolated between the two neighboring fixed layers, or thresholds. The best fixed exit is "
        "chosen on these same questions, anew in each resample, which favors it. The oracle exits at the first "
        "layer from which every label is 1. It gives the baseline's answers, as does the earliest exit that keeps "
        "them. Every number: `dynamic.json`.\n"
    )


def _sentence(title: str, scope: Mapping[str, Any]) -> str:
    """What the gates gain over the fixed exits; empty without DyVTE."""
    ours = [row for row in scope["rows"] if row["method"] == "dyvte"]
    if not ours:
        return ""
    row = next((row for row in ours if row["label"] == "DyVTE"), ours[0])
    gain = row["over_fixed"]
    low, high = round(gain["low"], 2), round(gain["high"], 2)
    side = "above" if low > 0 else "below" if high < 0 else "not clearly different from"
    return (
        f"{title}: {row['label']} is {side} fixed exits of equal cost: {_text(gain)} points "
        f"({scope['questions']} questions)."
    )


def _text(found: Mapping[str, float] | str | None) -> str:
    """An interval, or a layer's name."""
    if found is None or isinstance(found, str):
        return NOTHING if found is None else f"layer {found}"
    # adding zero turns a negative zero, as tiny differences round to, into a plain one
    value, low, high = (round(found[name], 2) + 0.0 for name in ("value", "low", "high"))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


@styled
def figure_of(result: Mapping[str, Any]) -> Figure:
    """Score against cost, one panel for each scope: fixed exits, thresholds of the gates, the others, the oracle."""
    scopes = result["scopes"]
    columns = min(3, len(scopes))
    lines = -(-len(scopes) // columns)
    factor, unit = flops_unit([cost for scope in scopes.values() for cost in scope["fixed_costs"]])
    size = 4.4 * columns, 3.4 * lines + 0.5
    figure, grid = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    panels = list(grid.flat)
    for panel, (name, scope) in zip(panels, scopes.items(), strict=False):
        _draw(panel, scope, factor)
        panel.set_title(f"{title_of(name)}, {scope['questions']} questions", loc="left", fontsize=9)
        panel.set_xlabel(f"{unit} per question (whole prefill)")
        panel.set_ylabel("score")
    for panel in panels[len(scopes) :]:
        panel.set_axis_off()
    named = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in panels]
    shown = {label: handle for pairs in named for handle, label in pairs}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw(panel: Axes, scope: Mapping[str, Any], factor: float) -> None:
    fixed = [factor * cost for cost in scope["fixed_costs"]], scope["fixed_scores"]
    panel.plot(*fixed, "o-", color=GREY, markersize=3, linewidth=1, label="one exit layer for all")
    for layer, cost, score in zip(scope["layers"], *fixed, strict=True):
        note(panel, layer, (cost, score), (2, -8), fontsize=6, color=GREY)
    gates = sorted((factor * row["cost"], row["score"]) for row in scope["rows"] if row["method"] == "dyvte")
    if gates:
        costs, scores = zip(*gates, strict=True)
        label = "DyVTE, by threshold"
        panel.plot(costs, scores, "*-", color=ORANGE, markersize=9, linewidth=1, label=label)
    others = [row for row in scope["rows"] if row["method"] not in ("dyvte", "oracle")]
    oracles = [row for row in scope["rows"] if row["method"] == "oracle"]
    for markers, color, shown in (("svP^X<>hp", BLUE, others), ("Dd", "black", oracles)):
        for marker, row in zip(markers, shown, strict=False):
            place = factor * row["cost"], row["score"]
            panel.plot(*place, marker, color=color, markersize=6, label=row["label"])


def compare(args: argparse.Namespace) -> None:
    """Write all numbers, by scope, with table and figure; raises what ``read_all`` and ``scope_of`` raise."""
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
    parser = records_parser("dyvte.study.dynamic", "Exits per question against one exit layer for all.")
    parser.add_argument("--oracle", nargs="*", type=Path, default=[], help="folders of dyvte.study.oracle")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    run(parser, compare, arguments)


if __name__ == "__main__":
    main()
