"""Labels of all layers in each step, or of one random layer, at the same number of forward passes of the model.

    python -m dyvte.study.supervision_modes --store STORE --held-out STORE --model-path MODEL --output DIR
        [--seeds 0 1 2] [--epochs 1 4] [flags of dyvte.gates.fit]

One store gives both ways the same samples in the same order: with one seed, a step of either is one forward pass over
the same batch. ``all`` learns from the labels of every layer, ``random`` from those of one that it draws, as the
paper does. A pass that forks after every layer costs more than one that forks once; ``pass_flops`` says by how much.
The gates are judged on a store of samples that they were not fitted to: how many answers an exit changes (any argmax,
with the data's answer given), and which share of the decoder's FLOPs, gates counted, it saves. No model runs.
``DIR/supervision_modes.json`` holds the numbers, from which ``.md``, ``.png`` and ``.pdf`` are made.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from transformers import HfArgumentParser

from dyvte.cli import extra, one_line_errors
from dyvte.cost.exits import decoder_flops_by_exit
from dyvte.gates.calibration import Outcomes
from dyvte.gates.gate import ExitGates
from dyvte.gates.options import TrainingArguments
from dyvte.gates.store import StateStore
from dyvte.report.plotting import BLUE, ORANGE, styled
from dyvte.report.tables import NOTHING, to_markdown
from dyvte.study.files import write_result
from dyvte.study.gate_grid import fit_once
from dyvte.study.gate_sizes import decoder_config, outcomes_of

with extra("study"):
    from matplotlib import pyplot
    from matplotlib.figure import Figure

MODES = {"all": "labels of all layers", "random": "labels of one random layer"}
THRESHOLDS = tuple(step / 50 for step in range(51))
"""A choice: fine enough for a curve."""
SAVED_COMPUTE = 0.35
"""Share of the decoder's FLOPs at which the table compares changed answers; about what the paper saves."""


def at_thresholds(outcomes: Outcomes, full: float) -> dict[str, Any]:
    """What gates do at every threshold.

    Args:
        full: mean decoder FLOPs without exit and without gates.
    """
    samples = outcomes.kept.shape[1]
    return {
        "changed": [outcomes.changed(threshold) / samples for threshold in THRESHOLDS],
        "saved": [1 - outcomes.cost(threshold) / full for threshold in THRESHOLDS],
        "exit_layer": [float(outcomes.exits(threshold).mean()) for threshold in THRESHOLDS],
    }


def changed_at(saved: Sequence[float], changed: Sequence[float], wanted: float) -> float | None:
    """The least share of changed answers among thresholds that save at least ``wanted``; None where none does."""
    return min((c for s, c in zip(saved, changed, strict=True) if s >= wanted), default=None)


def pass_flops(config, prompt: Sequence[int], visual: Sequence[int], forks: Sequence[int]) -> float:
    """Mean decoder FLOPs of one labelling pass, with a text copy forked after each of these layers.

    Answers are left out: they add the same to both ways.
    """
    by_exit = decoder_flops_by_exit(config, prompt, visual).sum(1)
    layer = by_exit[-1] // config.num_hidden_layers
    return float(by_exit[-1] + sum(by_exit[fork] - (fork + 1) * layer for fork in forks)) / len(prompt)


def compare(args: argparse.Namespace, flags: Sequence[str]) -> dict[str, Any]:
    """Fit what is not there yet, and judge all.

    Raises:
        FileNotFoundError, ValueError: a store, or the model's config, cannot be used.
    """
    config = decoder_config(args.model_path)
    tokens = StateStore(args.held_out).read("prompt_tokens", "visual_tokens")
    prompt, visual = (counts.tolist() for counts in tokens)
    layers = config.num_hidden_layers
    full = float(decoder_flops_by_exit(config, prompt, visual)[-1].mean())
    one = float(np.mean([pass_flops(config, prompt, visual, [layer]) for layer in range(layers)]))
    runs = []
    for epochs, mode, seed in product(args.epochs, MODES, args.seeds):
        folder = args.output / "gates" / f"{mode}-{epochs}ep-seed{seed}"
        own = ["--gate_supervision", mode, "--num_train_epochs", str(epochs), "--seed", str(seed)]
        fit_once(args.store, folder, [*flags, *own])
        outcomes = outcomes_of(ExitGates.from_pretrained(folder), args.held_out, config)
        runs.append({"mode": mode, "epochs": epochs, "seed": seed, **at_thresholds(outcomes, full)})
    samples = StateStore(args.store)
    return {
        "definitions": __doc__,
        "flags": list(flags),
        "fitted": len(samples.index),
        "held_out": len(prompt),
        "passes": {str(epochs): _passes(flags, len(samples), epochs) for epochs in args.epochs},
        "pass_flops": {"all": pass_flops(config, prompt, visual, range(layers)) / one, "random": 1.0},
        "thresholds": list(THRESHOLDS),
        "runs": runs,
    }


def _passes(flags: Sequence[str], samples: int, epochs: int) -> int:
    """Forward passes of a fit on one process: one for each batch."""
    parser = HfArgumentParser(TrainingArguments)  # type: ignore[arg-type]
    parsed, _ = parser.parse_known_args(["--output_dir", "unused", *flags])
    if parsed.max_steps > 0:
        return parsed.max_steps
    return -(-samples // parsed.per_device_train_batch_size) * epochs


def table(result: dict[str, Any]) -> str:
    """Markdown: means over seeds, and the least and the most of them."""
    half, wanted = result["thresholds"].index(0.5), f"{SAVED_COMPUTE:.0%}"
    rows = [["Labels", "Epochs", "Passes", "Changed at 0.5", "Saved at 0.5", f"Changed at {wanted} saved"]]
    for mode, epochs in dict.fromkeys((run["mode"], run["epochs"]) for run in result["runs"]):
        runs = _runs_of(result, mode, epochs)
        at_half = ([run[share][half] for run in runs] for share in ("changed", "saved"))
        at_saved = [changed_at(run["saved"], run["changed"], SAVED_COMPUTE) for run in runs]
        ranges = map(_with_range, (*at_half, at_saved))
        rows.append([MODES[mode], str(epochs), str(result["passes"][str(epochs)]), *ranges])
    seeds = len({run["seed"] for run in result["runs"]})
    return (
        f"## Labels of all layers, or of one random layer\n\n{to_markdown(rows)}\n"
        f"{result['fitted']} samples to fit, {result['held_out']} others to judge; mean, least and most of {seeds} "
        "seeds. Changed: answers in which the exit changes a token. Saved: decoder FLOPs, gates counted. A pass is "
        f"one batch through the frozen model; with the labels of all layers it costs "
        f"{result['pass_flops']['all']:.2f} times one with a random layer's (decoder, prompts only).\n"
    )


def _runs_of(result: dict[str, Any], mode: str, epochs: int) -> list[dict[str, Any]]:
    return [run for run in result["runs"] if (run["mode"], run["epochs"]) == (mode, epochs)]


def _with_range(found: Sequence[float | None]) -> str:
    """The mean, the least and the most; nothing where a value is missing."""
    values = [value for value in found if value is not None]
    if len(values) < len(found):
        return NOTHING
    return f"{np.mean(values):.1%} ({min(values):.1%} to {max(values):.1%})"


@styled
def figure_of(result: dict[str, Any]) -> Figure:
    """Changed answers against saved FLOPs, one line for each fit: by color how it learnt, by panel for how long."""
    lengths = list(dict.fromkeys(run["epochs"] for run in result["runs"]))
    shape: dict[str, Any] = {"sharey": True, "squeeze": False, "layout": "constrained"}
    figure, grid = pyplot.subplots(1, len(lengths), figsize=(4.2 * len(lengths) + 0.6, 3.6), **shape)
    half = result["thresholds"].index(0.5)
    for panel, epochs in zip(grid[0], lengths, strict=True):
        for (mode, label), color in zip(MODES.items(), (ORANGE, BLUE), strict=True):
            for index, run in enumerate(_runs_of(result, mode, epochs)):
                saved, changed = 100 * np.array(run["saved"]), 100 * np.array(run["changed"])
                panel.plot(saved, changed, "-", color=color, linewidth=1, label=None if index else label)
                panel.plot(saved[half], changed[half], "o", color=color, markersize=4)
        passes = result["passes"][str(epochs)]
        panel.set_title(f"{passes} passes; dots: threshold 0.5", loc="left", fontsize=9)
        panel.set_xlabel("decoder FLOPs saved (%)")
        panel.set_xlim(left=0)
    grid[0][0].set_ylabel("answers changed (%)")
    grid[0][0].legend(frameon=False, loc="upper left", fontsize=8)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.study.supervision_modes",
        description="All-layer against random-layer labels; further flags go to dyvte.gates.fit.",
        allow_abbrev=False,  # --seed is none of these flags
    )
    parser.add_argument("--store", type=Path, required=True, help="what dyvte.gates.store_states wrote")
    parser.add_argument(
        "--held-out", type=Path, required=True, help="store of samples that gates are judged on"
    )
    parser.add_argument("--model-path", required=True, help="the model's folder; only its config is read")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1])
    args, flags = parser.parse_known_args(argv)
    with one_line_errors(parser.prog):
        result = compare(args, flags)
        write_result(args.output, "supervision_modes", result, table(result), figure_of(result))


if __name__ == "__main__":
    main()
