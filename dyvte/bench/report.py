"""Measurements as a table, as JSON with their provenance, and as a plot of seconds against the exit layer.

Called by :mod:`dyvte.bench` and :mod:`dyvte.bench.parity`.
"""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from dyvte.bench.settings import Measurements, Result, Settings
from dyvte.cli import needs
from dyvte.provenance import git_state, hardware, versions
from dyvte.report.plotting import BLUE, GREEN, GREY, ORANGE, STYLE
from dyvte.report.tables import to_markdown
from dyvte.timing import Quartiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = {
    "tflops": ("TFLOPs", "{:.3g}"),
    "kv_mib": ("KV MiB", "{:.1f}"),
    "tokens_per_second": ("Tokens/s", "{:.1f}"),
    "questions_per_second": ("Questions/s", "{:.1f}"),
    "outside_layers": ("Outside layers", "{:.1%}"),
    "tower_ms": ("Tower (ms)", "{:.2f}"),
    "projector_ms": ("projector", "{:.2f}"),
    "splice_ms": ("splice", "{:.2f}"),
    "decoder_ms": ("decoder", "{:.2f}"),
    "head_ms": ("head", "{:.2f}"),
    "forwards": ("Frozen forwards", "{:.2f}"),
    "forwards_per_label": ("Forwards per label", "{:.3f}"),
    "prefill_held_mib": ("KV held, prefill (MiB)", "{:.3f}"),
    "prefill_counted_mib": ("counted", "{:.3f}"),
    "prefill_allocated_mib": ("allocated", "{:.3f}"),
    "decode_held_mib": ("KV held, decode (MiB)", "{:.3f}"),
    "decode_counted_mib": ("counted", "{:.3f}"),
    "decode_allocated_mib": ("allocated", "{:.3f}"),
    "peak_mib": ("Peak (MiB)", "{:.1f}"),
    "reserved_mib": ("reserved", "{:.1f}"),
}


def table(measured: Measurements) -> str:
    """Markdown: a row for each variant and batch size, then the regimes."""
    names = [name for name in FORMATS if any(r.numbers.get(name) is not None for r in measured.results)]
    kernels = len({result.kernel for result in measured.results}) > 1
    ideals = any(result.ideal for result in measured.results)
    head = ["Batch", "Variant", "Seconds", "Quartiles", "Against baseline"]
    head += ["Ideal", "Efficiency"] if ideals else []
    head += ["Attention"] if kernels else []
    rows = [head + [FORMATS[name][0] for name in names]]
    for result in measured.results:
        seconds = Quartiles.of(result.seconds)
        row = [str(result.batch), result.variant, f"{seconds.median:.4g}"]
        row += [f"{seconds.low:.4g} to {seconds.high:.4g}", _against(result, measured)]
        if ideals:
            row += [_median(result.ideal, "{:.4g}"), _median(result.efficiency, "{:.3f}")]
        row += [result.kernel] if kernels else []
        rows.append(row + [_cell(result, name) for name in names])
    return to_markdown(rows) + "".join(_regime_text(line) for line in measured.regimes)


def _against(result: Result, measured: Measurements) -> str:
    """Change in seconds from the first variant of the same batch size, round by round."""
    base = next(other for other in measured.results if other.batch == result.batch)
    if base is result:
        return ""
    ratios = [own / other for own, other in zip(result.seconds, base.seconds, strict=True)]
    return f"{100 * (median(ratios) - 1):+.1f}%"


def _median(values: list[float] | None, form: str) -> str:
    return "" if not values else form.format(median(values))


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


def as_json(settings: Settings, measured: Measurements) -> dict[str, Any]:
    """All measurements with what they were taken on."""
    results = []
    for result in measured.results:
        entry = asdict(result)
        entry["contender"] = entry.pop("variant")  # the files' word since their first version
        entry["summary"] = asdict(Quartiles.of(result.seconds))
        if result.efficiency:
            entry["efficiency"] = median(result.efficiency)
        results.append(entry)
    flags = asdict(settings)
    flags["contenders"] = flags.pop("variants")
    return {
        "settings": flags,
        **provenance(),
        "results": results,
        "regimes": measured.regimes,
        "seconds_per_layer": measured.layers,
    }


def provenance() -> dict[str, Any]:
    """The code that measures, and the machine."""
    commit, dirty = git_state()
    return {
        "commit": commit,
        "modified": dirty,
        "versions": versions(),
        "hardware": {**hardware(), "threads": torch.get_num_threads()},
    }


def plot(settings: Settings, measured: Measurements) -> Figure:
    """Seconds against the exit layer, a panel for each batch size: measured, beside both ideals.

    Raises:
        ValueError: when no variant exits at a layer of its own.
    """
    pyplot = needs("matplotlib.pyplot", "study")
    exits = [result for result in measured.results if isinstance(result.exit_layer, int)]
    if not exits:
        raise ValueError("nothing to plot: no variant has an exit layer (see --exit-layers)")
    batches = sorted({result.batch for result in exits})
    with pyplot.rc_context(STYLE):
        size = (4.2 * len(batches) + 0.6, 3.4)
        figure, grid = pyplot.subplots(1, len(batches), figsize=size, squeeze=False, layout="constrained")
        for panel, batch in zip(grid[0], batches, strict=True):
            _panel(panel, batch, [result for result in measured.results if result.batch == batch])
        grid[0][0].set_ylabel("seconds per step" if settings.command == "decode" else "seconds")
        grid[0][0].legend(frameon=False, fontsize=8)
    return figure


def _panel(panel: Axes, batch: int, results: list[Result]) -> None:
    for result in results:
        if result.variant == "baseline":
            panel.axhline(median(result.seconds), color="black", linewidth=1, label="baseline")
    kinds = (
        ("gates", ORANGE, "o"),
        ("fixed", BLUE, "s"),
        ("graphs", GREEN, "^"),
        ("compiled", GREEN, "v"),
        ("eager", GREY, "x"),
    )
    for prefix, color, marker in kinds:
        found = [r for r in results if r.variant.startswith(prefix) and isinstance(r.exit_layer, int)]
        found.sort(key=lambda result: result.exit_layer)  # type: ignore[arg-type, return-value]
        if not found:
            continue
        layers: list[Any] = [result.exit_layer for result in found]
        times = [Quartiles.of(result.seconds) for result in found]
        medians = [time.median for time in times]
        bars = [[time.median - time.low for time in times], [time.high - time.median for time in times]]
        panel.errorbar(layers, medians, bars, fmt=f"{marker}-", color=color, label=f"{prefix}, measured")
        if prefix == "fixed" or not any(r.variant.startswith("fixed") for r in results):
            _ideals(panel, layers, found)
    panel.set_title(f"batch {batch}", loc="left", fontsize=10)
    panel.set_xlabel("layer after which the visual tokens exit")
    panel.set_ylim(bottom=0)


def _ideals(panel: Axes, layers: list, found: list[Result]) -> None:
    if all(result.ideal for result in found):
        best = [median(result.ideal or []) for result in found]
        panel.plot(layers, best, "--", color=BLUE, label="ideal, from layer times")
    if all(result.flops_ideal is not None for result in found):
        panel.plot(layers, [r.flops_ideal or 0.0 for r in found], ":", color=GREY, label="ideal, from FLOPs")
