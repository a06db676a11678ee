"""Tables and figure of ``dyvte.study.dynamic``, from its stored numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dyvte.cli import needs
from dyvte.report.plotting import BLUE, GREY, ORANGE, STYLE
from dyvte.report.tables import NOTHING, to_markdown
from dyvte.report.titles import flops_unit, model_title, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADER = (
    "Over fixed exits, equal cost",
    "Best fixed exit, same or lower cost",
    "Over it",
    "DyVTE over it, equal cost",
)


def markdown_of(result: Mapping[str, Any]) -> str:
    """The section of a report: a sentence for each scope, and one table."""
    scopes = result["scopes"]
    factor, unit = flops_unit([cost for scope in scopes.values() for cost in scope["fixed_costs"]])
    rows = [["Benchmark", "Method", "Score", unit, *HEADER]]
    for name, scope in scopes.items():
        base = [_score(scope["fixed_scores"][-1]), f"{factor * scope['fixed_costs'][-1]:.3g}"]
        rows.append([title_of(name), "Baseline", *base, *[NOTHING] * len(HEADER)])
        for row in scope["rows"]:
            cheaper = NOTHING if row["fixed_layer"] is None else f"layer {row['fixed_layer']}"
            compared = [
                _text(row["over_fixed"]),
                cheaper,
                _text(row["over_cheaper"]),
                _text(row["gates_over"]),
            ]
            cells = [_score(row["score"]), f"{factor * row['cost']:.3g}", *compared]
            rows.append([title_of(name), row["label"], *cells])
    sentences = [text for name, scope in scopes.items() if (text := _sentence(title_of(name), scope))]
    return (
        f"## What does dynamic buy? {model_title(result['model'])}\n\n"
        + "\n".join(f"- {sentence}" for sentence in sentences)
        + f"\n\n{to_markdown(rows)}\n{_notes(result)}"
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


def _notes(result: Mapping[str, Any]) -> str:
    return (
        f"In brackets: {100 * result['confidence']:.0f}% intervals over questions, by paired bootstrap "
        f"({result['resamples']} resamples, seed {result['seed']}). Scores are means over questions with an image. "
        "Equal cost: interpolated between the two neighboring fixed layers, or thresholds. The best fixed exit is "
        "chosen on these same questions, anew in each resample, which favors it. The oracle exits at the first "
        "layer from which every label is 1. It gives the baseline's answers, as does the earliest exit that keeps "
        "them. Every number: `dynamic.json`.\n"
    )


def _score(value: float) -> str:
    return f"{value:.2f}"


def _text(found: Mapping[str, float] | None) -> str:
    if found is None:
        return NOTHING
    # adding zero turns a negative zero, as tiny differences round to, into a plain one
    value, low, high = (round(found[name], 2) + 0.0 for name in ("value", "low", "high"))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def figure_of(result: Mapping[str, Any]) -> Figure:
    """Score against cost, one panel for each scope: fixed exits, thresholds of the gates, the others, the oracle."""
    pyplot = needs("matplotlib.pyplot", "study")

    scopes = result["scopes"]
    columns = min(3, len(scopes))
    lines = -(-len(scopes) // columns)
    factor, unit = flops_unit([cost for scope in scopes.values() for cost in scope["fixed_costs"]])
    with pyplot.rc_context(STYLE):
        figure, grid = pyplot.subplots(
            lines, columns, figsize=(4.4 * columns, 3.4 * lines + 0.5), squeeze=False, layout="constrained"
        )
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
        panel.annotate(
            layer, (cost, score), xytext=(2, -8), textcoords="offset points", fontsize=6, color=GREY
        )
    gates = sorted((factor * row["cost"], row["score"]) for row in scope["rows"] if row["method"] == "dyvte")
    if gates:
        panel.plot(
            *zip(*gates, strict=True),
            "*-",
            color=ORANGE,
            markersize=9,
            linewidth=1,
            label="DyVTE, by threshold",
        )
    others = [row for row in scope["rows"] if row["method"] not in ("dyvte", "oracle")]
    for marker, row in zip("svP^X<>hp", others, strict=False):
        panel.plot(factor * row["cost"], row["score"], marker, color=BLUE, markersize=6, label=row["label"])
    oracles = [row for row in scope["rows"] if row["method"] == "oracle"]
    for marker, row in zip("Dd", oracles, strict=False):
        panel.plot(
            factor * row["cost"], row["score"], marker, color="black", markersize=6, label=row["label"]
        )
