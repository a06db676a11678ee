"""A command's outcome as a table, as JSON with its provenance, and as a plot of seconds against the exit layer."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyvte.bench.settings import Outcome, Result, Settings
from dyvte.bench.timing import Spread
from dyvte.provenance import git_state, hardware, versions
from dyvte.report.plotting import BLUE, GREEN, GREY, ORANGE, STYLE
from dyvte.report.tables import to_markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = {
    "tflops": ("TFLOPs", "{:.3g}"),
    "kv_mib": ("KV MiB", "{:.1f}"),
    "tokens_per_second": ("Tokens/s", "{:.1f}"),
    "outside_layers": ("Outside layers", "{:.1%}"),
    "forwards": ("Frozen forwards", "{:.2f}"),
    "forwards_per_label": ("Forwards per label", "{:.3f}"),
    "prefill_held_mib": ("KV held, prefill (MiB)", "{:.3f}"),
    "prefill_counted_mib": ("counted", "{:.3f}"),
    "prefill_allocated_mib": ("allocated", "{:.3f}"),
    "decode_held_mib": ("KV held, decode (MiB)", "{:.3f}"),
    "decode_counted_mib": ("counted", "{:.3f}"),
    "decode_allocated_mib": ("allocated", "{:.3f}"),
    "peak_mib": ("Peak (MiB)", "{:.1f}"),
}


def table(outcome: Outcome) -> str:
    """Markdown: a row for each contender and batch size, then the regimes."""
    names = [name for name in FORMATS if any(name in result.numbers for result in outcome.results)]
    ideals = any(result.ideal for result in outcome.results)
    head = ["Batch", "Contender", "Seconds", "Quartiles", "Against baseline"]
    head += ["Ideal", "Efficiency"] if ideals else []
    rows = [head + [FORMATS[name][0] for name in names]]
    for result in outcome.results:
        spread = Spread.of(result.seconds)
        row = [str(result.batch), result.contender, f"{spread.median:.4g}"]
        row += [f"{spread.low:.4g} to {spread.high:.4g}", _against(result, outcome)]
        if ideals:
            row += [_median(result.ideal, "{:.4g}"), _median(result.efficiency, "{:.3f}")]
        rows.append(row + [_cell(result, name) for name in names])
    return to_markdown(rows) + "".join(_regime_text(line) for line in outcome.regimes)


def _against(result: Result, outcome: Outcome) -> str:
    """Change in seconds from the first contender of the same batch size, round by round."""
    base = next(other for other in outcome.results if other.batch == result.batch)
    if base is result:
        return ""
    ratios = [own / other for own, other in zip(result.seconds, base.seconds, strict=True)]
    return f"{100 * (Spread.of(ratios).median - 1):+.1f}%"


def _median(values: list[float] | None, form: str) -> str:
    return "" if not values else form.format(Spread.of(values).median)


def _cell(result: Result, name: str) -> str:
    value = result.numbers.get(name)
    return "" if value is None else FORMATS[name][1].format(value)


def _regime_text(line: dict[str, Any]) -> str:
    bounds = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in line["bounds"].items())
    return (
        f"\n{line['what']}: a layer is bound by {line['regime']} ({bounds}; "
        f"{line['tflops_per_second']:.3g} TFLOP/s, {line['gigabytes_per_second']:.3g} GB/s, "
        f"{line['launches']} operations of {line['microseconds_per_launch']:.3g} microseconds)"
    )


def as_json(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    """All measurements with what they were taken on."""
    import torch

    commit, dirty = git_state()
    results = []
    for result in outcome.results:
        entry = asdict(result)
        entry["summary"] = asdict(Spread.of(result.seconds))
        if result.efficiency:
            entry["efficiency"] = Spread.of(result.efficiency).median
        results.append(entry)
    return {
        "settings": settings.as_dict(),
        "commit": commit,
        "modified": dirty,
        "versions": versions(),
        "hardware": {**hardware(), "threads": torch.get_num_threads()},
        "results": results,
        "regimes": outcome.regimes,
        "seconds_per_layer": outcome.layers,
    }


def write_json(path: Path, settings: Settings, outcome: Outcome) -> None:
    """Write :func:`as_json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_json(settings, outcome), indent=1) + "\n", encoding="utf-8")


def plot(settings: Settings, outcome: Outcome) -> Figure:
    """Seconds against the exit layer, a panel for each batch size: measured, beside both ideals.

    Raises:
        ValueError: when no contender exits at a layer of its own.
    """
    from matplotlib import pyplot

    exits = [result for result in outcome.results if isinstance(result.exit_layer, int)]
    if not exits:
        raise ValueError("nothing to plot: no contender has an exit layer (see --exit-layers)")
    batches = sorted({result.batch for result in exits})
    with pyplot.rc_context(STYLE):
        size = (4.2 * len(batches) + 0.6, 3.4)
        figure, grid = pyplot.subplots(1, len(batches), figsize=size, squeeze=False, layout="constrained")
        for panel, batch in zip(grid[0], batches, strict=True):
            _panel(panel, batch, [result for result in outcome.results if result.batch == batch])
        grid[0][0].set_ylabel("seconds per step" if settings.command == "decode" else "seconds")
        grid[0][0].legend(frameon=False, fontsize=8)
    return figure


def _panel(panel: Axes, batch: int, results: list[Result]) -> None:
    for result in results:
        if result.contender == "baseline":
            panel.axhline(Spread.of(result.seconds).median, color="black", linewidth=1, label="baseline")
    kinds = (("gates", ORANGE, "o"), ("fixed", BLUE, "s"), ("graphs", GREEN, "^"), ("eager", GREY, "x"))
    for prefix, colour, marker in kinds:
        found = [r for r in results if r.contender.startswith(prefix) and isinstance(r.exit_layer, int)]
        found.sort(key=lambda result: result.exit_layer)  # type: ignore[arg-type, return-value]
        if not found:
            continue
        layers: list[Any] = [result.exit_layer for result in found]
        spreads = [Spread.of(result.seconds) for result in found]
        medians = [spread.median for spread in spreads]
        bars = [
            [spread.median - spread.low for spread in spreads],
            [spread.high - spread.median for spread in spreads],
        ]
        panel.errorbar(layers, medians, bars, fmt=f"{marker}-", color=colour, label=f"{prefix}, measured")
        if prefix == "fixed" or not any(r.contender.startswith("fixed") for r in results):
            _ideals(panel, layers, found)
    panel.set_title(f"batch {batch}", loc="left", fontsize=10)
    panel.set_xlabel("layer after which the visual tokens exit")
    panel.set_ylim(bottom=0)


def _ideals(panel: Axes, layers: list, found: list[Result]) -> None:
    if all(result.ideal for result in found):
        best = [Spread.of(result.ideal or []).median for result in found]
        panel.plot(layers, best, "--", color=BLUE, label="ideal, from layer times")
    if all(result.flops_ideal is not None for result in found):
        panel.plot(layers, [r.flops_ideal or 0.0 for r in found], ":", color=GREY, label="ideal, from FLOPs")
