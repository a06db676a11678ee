"""Tables and figure of ``dyvte.study.dynamic``, from its stored numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dyvte.cli import extra
from dyvte.report.plotting import BLUE, GREY, ORANGE, note, styled
from dyvte.report.tables import NOTHING, to_markdown
from dyvte.report.titles import flops_unit, model_title, title_of

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
