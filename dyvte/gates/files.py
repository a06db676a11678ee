"""Gates on disk: a small folder of their own, or the paper's keys inside a whole checkpoint.

Called from most of the project.
"""

from __future__ import annotations

import filecmp
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dyvte.fields import MOST_LAYERS, TEXT, WIDEST, check_fields, listed, number, optional, record, whole
from dyvte.gates.gate import ExitGates
from dyvte.gates.origin import Origin
from dyvte.io import read_json_object, whole_file, write_json
from dyvte.provenance import sha256_of
from dyvte.weights import FLOATS, check_finite, load_tensors, shards_of, tensors_in, writing

WEIGHTS, DESCRIPTION = "gates.safetensors", "gates.json"
FORMAT, VERSIONS = "dyvte-gates", (1, 2)
"""Version 2 adds where gates come from (:class:`dyvte.gates.origin.Origin`)."""
_TEXT = optional(TEXT)
FIELDS = {
    "num_layers": whole(1, MOST_LAYERS),
    "hidden_size": whole(1, WIDEST),
    "width": whole(1, WIDEST),
    "states": listed(TEXT),
    "kind": _TEXT,
    "rank": optional(whole(1, WIDEST)),
    "gated_layers": optional(listed(whole(0, MOST_LAYERS))),
    "base_model": _TEXT,
    "base_sha256": _TEXT,
    "model_family": _TEXT,
    "trained_on": optional(record(sha256=TEXT, samples=whole(0, 10**12))),
    "calibration": optional(record(threshold=number(0, 1))),
}
"""What a description of gates holds."""
PAPER_KEY = re.compile(r"(?:^|\.)visual_gates_router\.(\d{1,4})\.(w[12])\.weight$")
PAPER_PREFIX = "model.visual_gates_router"


def save_gates(gates: ExitGates, folder: str | Path) -> None:
    """Write the gates to ``folder``: weights as safetensors, then what they are as JSON."""
    folder = Path(folder)
    weights = {name: value.detach().cpu().contiguous() for name, value in gates.state_dict().items()}
    with writing(folder / WEIGHTS), whole_file(folder / WEIGHTS) as unfinished:
        save_file(weights, unfinished, metadata={"format": "pt"})
        if not (folder / WEIGHTS).is_file() or not filecmp.cmp(folder / WEIGHTS, unfinished, shallow=False):
            # else a kill between the two files would leave other gates with this calibration and origin
            (folder / DESCRIPTION).unlink(missing_ok=True)
    description = {
        "format": FORMAT,
        "version": VERSIONS[-1],
        **{name: getattr(gates, name) for name in ("num_layers", "hidden_size", "width", "states")},
        "kind": gates.kind if gates.kind != "full" else None,
        "rank": gates.rank,
        "gated_layers": gates.gated_layers if len(gates.gated_layers) < gates.num_layers else None,
        **asdict(gates.origin),
        "calibration": gates.calibration or None,
    }
    known = {name: value for name, value in description.items() if value is not None}
    with writing(folder / DESCRIPTION):
        write_json(folder / DESCRIPTION, known, indent=2)


def has_gates(folder: str | Path) -> bool:
    """Whether a local folder holds gates of either kind; reads names only."""
    folder = Path(folder)
    return (folder / WEIGHTS).is_file() or any(True for _ in _paper_tensors(folder))


def gates_digest(folder: str | Path) -> str:
    """SHA-256 of the file that a folder's gates are loaded from; where a checkpoint holds them, of their tensors."""
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return sha256_of([folder / WEIGHTS], folder)[WEIGHTS]
    parts = {
        found.string: hashlib.sha256(read().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for found, read in _paper_tensors(folder)
    }
    return hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()


def load_gates(folder: str | Path, dtype: torch.dtype | None = None) -> ExitGates:
    """See :meth:`ExitGates.from_pretrained`."""
    folder = Path(folder)
    gates = _load_own(folder) if (folder / WEIGHTS).is_file() else _load_paper(folder)
    check_finite(gates.state_dict().items(), folder)
    return gates.to(dtype) if dtype is not None else gates


def _load_own(folder: Path) -> ExitGates:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it describes the gates in {WEIGHTS}")
    described = read_json_object(path)
    if described.get("format") != FORMAT or described.get("version") not in VERSIONS:
        raise ValueError(
            f"{path} is not a description of gates ({FORMAT}, version {VERSIONS[0]} or {VERSIONS[1]})"
        )
    check_fields(described, FIELDS, path)
    weights = load_tensors(folder / WEIGHTS)
    sizes = {name: described[name] for name in ("num_layers", "hidden_size", "width", "states")}
    options = {name: described[name] for name in ("kind", "rank", "gated_layers") if name in described}
    gates = _assemble(weights, path, **sizes, **options)
    gates.calibration = described.get("calibration") or {}
    gates.origin = Origin.from_dict(described)
    return gates


def _load_paper(folder: Path) -> ExitGates:
    weights = {f"layers.{found[1]}.{found[2]}.weight": read() for found, read in _paper_tensors(folder)}
    if not weights:
        raise FileNotFoundError(
            f"{folder} holds no gates: neither {WEIGHTS} nor a checkpoint with visual_gates_router keys; "
            "make some with init_weight.py and train them"
        )
    first = weights.get("layers.0.w1.weight")
    if first is None or first.ndim != 2:
        raise ValueError(f"{folder}: the gates of layer 0 are missing (found {len(weights)} gate weights)")
    num_layers = 1 + max(int(key.split(".")[1]) for key in weights)
    # the paper's gates read two text states
    return _assemble(
        weights, folder, num_layers=num_layers, hidden_size=first.shape[1] // 2, width=first.shape[0]
    )


def _assemble(weights: dict[str, Tensor], place: Path, **sizes) -> ExitGates:
    """Gates around these tensors: built without storage, so the weights are held once; ``place`` gave the sizes."""
    try:
        with torch.device("meta"):
            gates = ExitGates(**sizes)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    expected = {name: tuple(value.shape) for name, value in gates.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise ValueError(
            f"{place}: gate weight {wrong} should have shape {expected.get(wrong)} by its description, "
            f"the file has {found.get(wrong)}"
        )
    types = {value.dtype for value in weights.values()}
    if len(types) > 1 or not types <= set(FLOATS):
        named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in types))
        raise ValueError(
            f"{place}: gate weights must all be float16, bfloat16, float32 or float64; they are {named}"
        )
    gates.load_state_dict(weights, assign=True)
    return gates


def _paper_tensors(folder: Path) -> Iterator[tuple[re.Match[str], Callable[[], Tensor]]]:
    """(:data:`PAPER_KEY` found in its key, function that reads it) of each tensor of gates in a checkpoint folder."""
    index = folder / "pytorch_model.bin.index.json"
    if index.is_file():
        shards = shards_of(index).items()
        bins = {folder / shard for shard, keys in shards if any(PAPER_KEY.search(key) for key in keys)}
    else:
        bins = set(folder.glob("pytorch_model*.bin"))
    for path in [*sorted(folder.glob("*.safetensors")), *sorted(bins)]:
        for key, read in tensors_in(path):
            if found := PAPER_KEY.search(key):
                yield found, read
