"""How small can gates be at the same decisions? Gates of many sizes, judged on a store that they were not fitted to.

    python -m dyvte.study.gate_sizes --store HELD_OUT --gates DIR --model-path MODEL --output OUT

``DIR`` holds folders of gates, as ``dyvte.study.gate_grid sizes`` fits them. No model runs: the store knows for every
sample and layer whether an exit there keeps the answer. Written are ``gate_sizes.json`` and from it
``gate_sizes.md``, ``.png`` and ``.pdf``. Score is the share of answers that an exit keeps: those in which it changes
no argmax, with the data's answer given. FLOPs are the decoder's of a prefill, with the gates, relative to no exit.
Each size has two points: at the threshold 0.5, and at the largest threshold whose FLOPs are not above those of
the reference at 0.5, which makes scores comparable.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dyvte.cost.flops import layer_flops
from dyvte.gates.calibration import GRID, Outcomes
from dyvte.gates.files import DESCRIPTION
from dyvte.gates.gate import ExitGates
from dyvte.gates.store import StateStore
from dyvte.report.table import to_markdown
from dyvte.study.plot import save
from llava.model.language_model.llava_llama import LlavaConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THRESHOLD = 0.5


def outcomes_of(gates: ExitGates, folder: Path, config) -> Outcomes:
    """What every exit would do to the samples of a store; costs are the decoder's and the gates' FLOPs."""
    store = StateStore(folder, gates.states)
    gates.check(store.num_layers, store.hidden_size)
    parts = torch.cat(store.read(*gates.states), dim=-1)
    with torch.no_grad():
        chances = [gates.exit_probability(layer, parts[:, layer]) for layer in range(store.num_layers)]
    agreement, prompt, visual = store.read("agreement", "prompt_tokens", "visual_tokens")
    return Outcomes(
        torch.stack(chances).numpy(),
        (agreement == 1).T.numpy(),
        decoder_costs(config, prompt.tolist(), visual.tolist(), gates),
    )


def decoder_costs(config, prompt: Sequence[int], visual: Sequence[int], gates: ExitGates) -> np.ndarray:
    """(L + 1, n) FLOPs with exit after each layer, the last row without."""
    layers = config.num_hidden_layers
    columns = []
    for tokens, images in zip(prompt, visual, strict=True):
        full, text = layer_flops(config, tokens), layer_flops(config, tokens - images)
        exits = [
            (layer + 1) * full + (layers - 1 - layer) * text + gates.flops_to(layer)
            for layer in range(layers)
        ]
        columns.append([*exits, layers * full + gates.flops_to(layers - 1)])
    return np.array(columns, dtype=float).T


def judge(name: str, gates: ExitGates, outcomes: Outcomes, budget: float | None = None) -> dict:
    """Numbers of one size.

    Args:
        budget: mean FLOPs to compare at; those of these gates at the threshold 0.5 by default.
    """
    layers = gates.num_layers
    full = float(outcomes.costs[-1].mean()) - gates.flops_to(layers - 1)
    budget = outcomes.cost(THRESHOLD) if budget is None else budget
    fitting = [step / GRID for step in range(GRID, -1, -1) if outcomes.cost(step / GRID) <= budget]
    samples = outcomes.kept.shape[1]
    at = {"at_half": THRESHOLD, "at_budget": fitting[0] if fitting else None}
    points = {
        key: None
        if threshold is None
        else {
            "threshold": threshold,
            "kept": 1 - outcomes.changed(threshold) / samples,
            "flops": outcomes.cost(threshold) / full,
            "exit_layer": float(outcomes.exits(threshold).mean()),
        }
        for key, threshold in at.items()
    }
    parameters = list(gates.parameters())
    return {
        "name": name,
        "kind": gates.kind,
        "parameters": sum(value.numel() for value in parameters),
        "bytes": sum(value.numel() * value.element_size() for value in parameters),
        "gate_flops": gates.flops_to(layers - 1) / full,
        **points,
    }


def compare(store: Path, folder: Path, config, reference: str) -> dict:
    """All sizes below a folder, those of the reference first.

    Raises:
        FileNotFoundError: there are no gates, or not the reference.
        ValueError: gates do not fit the store.
    """
    names = sorted(path.parent.name for path in folder.glob(f"*/{DESCRIPTION}"))
    if reference not in names:
        raise FileNotFoundError(f"{folder} holds no gates named {reference}: fit them with gate_grid sizes")
    names.sort(key=lambda name: name != reference)
    sizes, budget = [], None
    for name in names:
        gates = ExitGates.from_pretrained(folder / name)
        outcomes = outcomes_of(gates, store, config)
        budget = outcomes.cost(THRESHOLD) if budget is None else budget
        sizes.append(judge(name, gates, outcomes, budget))
    samples = len(StateStore(store).index)
    return {"reference": reference, "samples": samples, "sizes": sizes}


def table(result: dict) -> str:
    """Markdown, smallest gates last."""
    rows = [
        [
            "Gates",
            "Kind",
            "Parameters",
            "Bytes",
            "Gate FLOPs",
            "Kept",
            "FLOPs",
            "Exit layer",
            "Kept at equal FLOPs",
        ]
    ]
    for size in sorted(result["sizes"], key=lambda size: -size["bytes"]):
        half, equal = size["at_half"], size["at_budget"]
        rows.append(
            [
                size["name"],
                size["kind"],
                f"{size['parameters']:,}",
                f"{size['bytes']:,}",
                f"{size['gate_flops']:.2%}",
                f"{half['kept']:.1%}",
                f"{half['flops']:.1%}",
                f"{half['exit_layer']:.2f}",
                f"{equal['kept']:.1%}" if equal else "-",
            ]
        )
    note = (
        f"{result['samples']} samples. Kept: share of answers in which the exit changes no token. FLOPs: of the "
        f"decoder and the gates, against no exit. Equal FLOPs: those of {result['reference']} at the threshold 0.5.\n"
    )
    return to_markdown(rows) + "\n" + note


def figure_of(result: dict) -> Figure:
    """Kept answers against FLOPs, colour by gate size; and kept answers at equal FLOPs against gate size."""
    from matplotlib import pyplot

    sizes = result["sizes"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    shades = left.scatter(
        [100 * size["at_half"]["flops"] for size in sizes],
        [100 * size["at_half"]["kept"] for size in sizes],
        c=[size["bytes"] for size in sizes],
        norm="log",
        cmap="viridis",
    )
    for size in sizes:
        place = (100 * size["at_half"]["flops"], 100 * size["at_half"]["kept"])
        left.annotate(size["name"], place, fontsize=6, xytext=(3, 3), textcoords="offset points")
    left.set(xlabel="decoder FLOPs, % of no exit", ylabel="answers kept, %", title="threshold 0.5")
    figure.colorbar(shades, ax=left, label="bytes of gates")
    for kind in dict.fromkeys(size["kind"] for size in sizes):
        points = [size for size in sizes if size["kind"] == kind and size["at_budget"]]
        kept = [100 * size["at_budget"]["kept"] for size in points]
        right.scatter([size["bytes"] for size in points], kept, label=kind)
    right.set(xscale="log", xlabel="bytes of gates", ylabel="answers kept, %", title="at equal FLOPs")
    right.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.study.gate_sizes", description="Gates of many sizes on a held-out store."
    )
    parser.add_argument(
        "--store", type=Path, required=True, help="store of samples that no gate was fitted to"
    )
    parser.add_argument("--gates", type=Path, required=True, help="folder with one folder per size")
    parser.add_argument("--model-path", required=True, help="the model's folder; only its config is read")
    parser.add_argument("--reference", default="full-2048", help="gates that set the budget")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        config = LlavaConfig.from_pretrained(args.model_path)
        result = compare(args.store, args.gates, config, args.reference)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "gate_sizes.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.output / "gate_sizes.md").write_text(table(result))
    save(figure_of(result), args.output / "gate_sizes")
    print(table(result), end="")


if __name__ == "__main__":
    main()
