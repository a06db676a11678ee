"""How small can gates be at the same decisions? Gates of many sizes, judged on a store that they were not fitted to.

    python -m dyvte.study.gate_sizes --store HELD_OUT --gates DIR --model-path MODEL --output OUT --records RESULTS

``DIR`` holds folders of gates, as ``dyvte.study.gate_grid sizes`` fits them. No model runs: the store knows for every
sample and layer whether an exit there keeps the answer. Written are ``gate_sizes.json`` and from it
``gate_sizes.md``, ``.png`` and ``.pdf``. An exit keeps an answer when it changes no argmax, with the data's answer
given. FLOPs are the decoder's of a prefill, with the gates, relative to no exit. Each size has two points: at the
threshold 0.5, and at the largest threshold whose FLOPs are not above those of the reference at 0.5, which makes sizes
comparable. Given records of benchmarks, without exit and with the gates of each size, their average score stands
beside, with the decoder's FLOPs that were spent on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig

from dyvte.benchmarks.benchmark import mean
from dyvte.cli import extra, run
from dyvte.cost.exits import decoder_flops_by_exit
from dyvte.gates.calibration import Outcomes, highest_within
from dyvte.gates.files import DESCRIPTION
from dyvte.gates.gate import ExitGates
from dyvte.gates.store import StateStore
from dyvte.report.plotting import GREY, number_point, styled
from dyvte.report.record import ResultRecord, read_records
from dyvte.report.tables import NOTHING, to_markdown
from dyvte.report.titles import title_of
from dyvte.study.files import write_result

with extra("study"):
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

THRESHOLD = 0.5
MARKERS = {"full": "o", "low_rank": "s", "shared": "^"}
COLUMNS = [
    ("Gates", "name", "{}"),
    ("Kind", "kind", "{}"),
    ("Parameters", "parameters", "{:,}"),
    ("Bytes", "bytes", "{:,}"),
    ("Gate FLOPs", "gate_flops", "{:.2%}"),
    ("Kept", "at_half", "{[kept]:.1%}"),
    ("FLOPs", "at_half", "{[flops]:.1%}"),
    ("Exit layer", "at_half", "{[exit_layer]:.2f}"),
    ("Kept at equal FLOPs", "at_budget", "{[kept]:.1%}"),
]
"""Heading, number of a size, and its form."""
OF_BENCHMARKS = [("Score", "benchmarks", "{[score]:.2f}"), ("FLOPs", "benchmarks", "{[flops]:.1%}")]


def decoder_config(model_path: str) -> LlamaConfig:
    """A checkpoint's decoder config, without loading code of its family."""
    fields, _ = LlamaConfig.get_config_dict(model_path)
    fields = {**fields.get("text_config", fields), "model_type": LlamaConfig.model_type}
    return LlamaConfig.from_dict(fields)


def outcomes_of(gates: ExitGates, folder: Path, config) -> Outcomes:
    """What every exit would do to the samples of a store; costs are the decoder's and the gates' FLOPs."""
    store = StateStore(folder, gates.states)
    gates.check(store.num_layers, store.hidden_size)
    parts = torch.cat(store.read(*gates.states), dim=-1)
    with torch.no_grad():
        chances = [gates.exit_probability(layer, parts[:, layer]) for layer in range(store.num_layers)]
    agreement, prompt, visual = store.read("agreement", "prompt_tokens", "visual_tokens")
    of_gates = [gates.flops_to(min(layer, store.num_layers - 1)) for layer in range(store.num_layers + 1)]
    of_decoder = decoder_flops_by_exit(config, prompt.tolist(), visual.tolist()).astype(float)
    costs = of_decoder + np.array(of_gates)[:, None]
    return Outcomes(torch.stack(chances).numpy(), (agreement == 1).T.numpy(), costs)


def numbers_of(name: str, gates: ExitGates, outcomes: Outcomes, budget: float) -> dict:
    """Size, cost and kept answers of one set of gates.

    Args:
        budget: mean FLOPs to compare at.
    """
    of_gates = gates.flops_to(gates.num_layers - 1)
    full = float(outcomes.costs[-1].mean()) - of_gates

    def at(threshold: float) -> dict[str, float]:
        kept = 1 - outcomes.changed(threshold) / outcomes.kept.shape[1]
        exits, cost = outcomes.exits(threshold), outcomes.cost(threshold)
        return {"threshold": threshold, "kept": kept, "flops": cost / full, "exit_layer": float(exits.mean())}

    equal = highest_within(outcomes, budget)
    parameters = list(gates.parameters())
    return {
        "name": name,
        "kind": gates.kind,
        "parameters": sum(value.numel() for value in parameters),
        "bytes": sum(value.numel() * value.element_size() for value in parameters),
        "gate_flops": of_gates / full,
        "at_half": at(THRESHOLD),
        "at_budget": None if equal is None else at(equal),
    }


def benchmark_scores(records: Sequence[ResultRecord]) -> dict:
    """Average score, and share of the decoder's FLOPs, of each size that has all benchmarks.

    Returns:
        the benchmarks, the score without exit, and by name of the gates' folder {"score", "flops"}.

    Raises:
        ValueError: a benchmark lacks its record without exit.
    """
    plain = {record.benchmark: record for record in records if record.method == "none"}
    sizes: dict[str, dict[str, ResultRecord]] = {}
    for record in records:
        if record.method == "dyvte":
            sizes.setdefault(Path(record.settings["gates"]).name, {})[record.benchmark] = record
    lacking = {name for found in sizes.values() for name in found} - plain.keys()
    if lacking or not plain:
        raise ValueError(
            f"records without exit are missing for {', '.join(sorted(lacking)) or 'all benchmarks'}"
        )
    return {
        "benchmarks": sorted(plain),
        "without_exit": mean([record.score for record in plain.values()]),
        "sizes": {
            size: {
                "score": mean([record.score for record in found.values()]),
                "flops": mean([r.decoder_tflops / plain[name].decoder_tflops for name, r in found.items()]),
            }
            for size, found in sizes.items()
            if found.keys() == plain.keys()
        },
    }


def compare(store: Path, folder: Path, config, reference: str, records: Sequence[ResultRecord] = ()) -> dict:
    """All sizes below a folder, those of the reference first.

    Raises:
        FileNotFoundError: there are no gates, or not the reference.
        ValueError: gates do not fit the store, or records do not belong together.
    """
    scored = benchmark_scores(records) if records else {}
    scores = scored.pop("sizes", {})
    names = sorted(path.parent.name for path in folder.glob(f"*/{DESCRIPTION}"))
    if reference not in names:
        raise FileNotFoundError(f"{folder} holds no gates named {reference}: fit them with gate_grid sizes")
    names.sort(key=lambda name: name != reference)
    sizes, budget = [], None
    for name in names:
        gates = ExitGates.from_pretrained(folder / name)
        outcomes = outcomes_of(gates, store, config)
        budget = outcomes.cost(THRESHOLD) if budget is None else budget
        sizes.append({**numbers_of(name, gates, outcomes, budget), "benchmarks": scores.get(name)})
    samples = len(StateStore(store).index)
    return {"reference": reference, "samples": samples, "sizes": sizes, "benchmarks": scored}


def table(result: dict) -> str:
    """Markdown, smallest gates last."""
    scored = result["benchmarks"].get("benchmarks")
    columns = [*COLUMNS, *(OF_BENCHMARKS if scored else [])]
    rows = [[heading for heading, _, _ in columns]]
    for size in sorted(result["sizes"], key=lambda size: -size["bytes"]):
        rows.append([form.format(size[of]) if size[of] is not None else NOTHING for _, of, form in columns])
    note = (
        f"{result['samples']} samples. Kept: share of answers in which the exit changes no token. FLOPs: of the "
        f"decoder and the gates, against no exit. Equal FLOPs: those of {result['reference']} at the threshold 0.5.\n"
    )
    if scored:
        without = result["benchmarks"]["without_exit"]
        note += f"Score: average of {', '.join(map(title_of, scored))}; {without:.2f} without exit.\n"
    return to_markdown(rows) + "\n" + note


@styled
def figure_of(result: dict) -> Figure:
    """Scores, where there are any, and kept answers against FLOPs; kept answers at equal FLOPs against bytes.

    Markers tell the kind of gates, colors their bytes, numbers their names.
    """
    sizes = sorted(result["sizes"], key=lambda size: -size["bytes"])
    without = result["benchmarks"].get("without_exit")
    norm = LogNorm(sizes[-1]["bytes"], sizes[0]["bytes"])
    colors = [pyplot.get_cmap("viridis")(norm(size["bytes"])) for size in sizes]

    def draw(panel: Axes, points: list[tuple[float, float] | None]) -> None:
        places: dict[tuple[float, float], list[int]] = {}
        for number, (size, point, color) in enumerate(zip(sizes, points, colors, strict=True), 1):
            if point is not None:
                panel.plot(*point, MARKERS[size["kind"]], color=color, zorder=3)
                places.setdefault(point, []).append(number)
        for point, numbers in places.items():
            number_point(panel, point, numbers, distance=5, fontsize=6)
        panel.margins(0.1)

    panels = 2 if without is None else 3
    figure, grid = pyplot.subplots(1, panels, figsize=(4.2 * panels + 2, 4.2), layout="constrained")
    if without is not None:
        draw(grid[0], [at and (100 * at["flops"], at["score"]) for at in (s["benchmarks"] for s in sizes)])
        grid[0].axhline(without, color=GREY, linewidth=1, linestyle="--")
        names = ", ".join(map(title_of, result["benchmarks"]["benchmarks"]))
        grid[0].set(ylabel="average score")
        grid[0].set_title(f"{names}; dashed: without exit", loc="left", fontsize=8)
    draw(grid[-2], [(100 * s["at_half"]["flops"], 100 * s["at_half"]["kept"]) for s in sizes])
    grid[-2].set(ylabel="answers kept, %")
    for panel in grid[:-1]:
        panel.set(xlabel="decoder FLOPs, % of no exit")
    draw(grid[-1], [s["at_budget"] and (s["bytes"], 100 * s["at_budget"]["kept"]) for s in sizes])
    grid[-1].set(xscale="log", xlabel="bytes of gates", ylabel="answers kept at equal FLOPs, %")
    shades = ScalarMappable(norm, "viridis")
    figure.colorbar(shades, ax=list(grid), label="bytes of gates", location="bottom", aspect=80)
    for number, (size, color) in enumerate(zip(sizes, colors, strict=True), 1):
        grid[-1].plot([], [], MARKERS[size["kind"]], color=color, label=f"{number}  {size['name']}")
    figure.legend(frameon=False, loc="outside right upper", fontsize=7)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.study.gate_sizes", description="Gates of many sizes on a held-out store."
    )
    held_out = "store of samples that no gate was fitted to"
    parser.add_argument("--store", type=Path, required=True, help=held_out)
    parser.add_argument("--gates", type=Path, required=True, help="folder with one folder per size")
    parser.add_argument("--model-path", required=True, help="the model's folder; only its config is read")
    parser.add_argument("--reference", default="full-2048", help="gates that set the budget")
    parser.add_argument(
        "--records", nargs="+", default=[], help="benchmark records, files or folders of them"
    )
    parser.add_argument("--output", type=Path, required=True)

    def action(args: argparse.Namespace) -> None:
        config = decoder_config(args.model_path)
        records = read_records(args.records)
        result = compare(args.store, args.gates, config, args.reference, records)
        write_result(args.output, "gate_sizes", result, table(result), figure_of(result))

    run(parser, action, argv)


if __name__ == "__main__":
    main()
