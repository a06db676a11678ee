"""Fit a whole grid of gates from one store of states, each into a folder of its own.

    python -m dyvte.study.gate_grid states --store STORE --output DIR --learning_rate 4e-5 ...

Grids: ``states`` has all fifteen combinations of the four states (Table 5 of the paper), ``pairs`` those of one or
two (Table 3), ``attention`` the seven of the three attention statistics (Table 6), ``sizes`` gates of several kinds
and sizes for the paper's two states. Further flags go to ``dyvte.gates.fit`` and are the same for every gate of
the grid. Gates that are fitted already, from the same store with the same flags, are kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from dyvte.cli import one_line_errors
from dyvte.gates import fit as fit_gates
from dyvte.gates.files import DESCRIPTION
from dyvte.gates.states import ATTENTION_STATES, STATES
from dyvte.gates.store import MANIFEST, Manifest
from dyvte.io import read_json_object, read_text, write_whole
from dyvte.report.state_table import combinations

GRIDS = ("states", "pairs", "attention", "sizes")
MARK = "fit.json"
# the sizes of the grid are a choice, from the paper's gates down to ones that no longer decide well
SIZES = [
    *(("full", width) for width in (2048, 512, 128, 32, 8)),
    *(("shared", width) for width in (256, 64, 16, 4)),
]
RANKS = (16, 4, 1)
EVERY = (2, 4)
"""Gates in every second, or fourth, layer only."""


def grid(kind: str, num_layers: int) -> dict[str, list[str]]:
    """Folder name -> flags of ``fit_gates``, for one of :data:`GRIDS`."""
    if kind != "sizes":
        among = ATTENTION_STATES if kind == "attention" else STATES
        chosen = combinations(among, 2 if kind == "pairs" else None)
        return {"+".join(names): ["--states", *names] for names in chosen}
    found = {f"{shape}-{width}": f"--gate_kind {shape} --width {width}" for shape, width in SIZES}
    for rank in RANKS:
        found[f"low_rank-128-rank{rank}"] = f"--gate_kind low_rank --width 128 --rank {rank}"
    for step in EVERY:
        layers = " ".join(map(str, range(step - 1, num_layers, step)))
        found[f"full-128-every{step}"] = f"--width 128 --gated_layers {layers}"
    for name in ("full-128", "shared-64"):
        found[f"{name}-float16"] = f"{found[name]} --gate_dtype float16"
    return {name: flags.split() for name, flags in found.items()}


def fit_once(store: Path, folder: Path, flags: Sequence[str]) -> None:
    """Fit gates into a folder, unless they are there from this store with these flags.

    Raises:
        FileNotFoundError, ValueError: the store cannot be used.
    """
    wanted = json.dumps({"store": read_json_object(store / MANIFEST), "flags": list(flags)}, indent=1) + "\n"
    mark = folder / MARK
    if (folder / DESCRIPTION).is_file() and mark.is_file() and read_text(mark) == wanted:
        print(f"kept: {folder}")
        return
    print(f"fitting: {folder}")
    defaults = ["--save_strategy", "no", "--report_to", "none"]
    mark.unlink(missing_ok=True)
    fit_gates.main([*defaults, "--store", str(store), "--output_dir", str(folder), *flags])
    write_whole(mark, wanted)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.study.gate_grid",
        description="Fit a grid of gates from one store; further flags go to dyvte.gates.fit.",
    )
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--store", type=Path, required=True, help="what dyvte.gates.store_states wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the folders of gates")
    args, flags = parser.parse_known_args(argv)
    with one_line_errors(parser.prog):
        for name, own in grid(args.grid, Manifest.read(args.store).num_layers).items():
            fit_once(args.store, args.output / name, [*flags, *own])


if __name__ == "__main__":
    main()
