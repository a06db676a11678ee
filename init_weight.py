"""Fresh gates for a LLaVA checkpoint.

    python init_weight.py --model-path liuhaotian/llava-v1.5-7b --output checkpoints/llava-v1.5-7b-gates

writes a small folder (``gates.safetensors``, ``gates.json``). With ``--merge`` the output is a whole checkpoint that
holds the gates under the paper's keys (``model.visual_gates_router.{layer}.{w1,w2}.weight``), as the paper's own
script writes it. ``--gate-kind small`` makes one small gate that all layers share.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from transformers import HfArgumentParser, set_seed

from dyvte.gates.files import PAPER_PREFIX
from dyvte.gates.gate import ExitGates
from dyvte.gates.options import GateOptions
from dyvte.gates.states import PAPER_STATES

GATE_SHARD = "visual_gates.safetensors"
INDEX = "model.safetensors.index.json"


def main() -> None:
    parser = HfArgumentParser(
        GateOptions,  # type: ignore[arg-type] - any dataclass
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model-path", required=True, help="folder or hub name of the model the gates are for"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge", action="store_true", help="write a whole checkpoint with the paper's keys")
    try:
        options, args = parser.parse_args_into_dataclasses(look_for_args_file=False)
    except ValueError as error:  # unknown flags
        parser.error(str(error))
    if args.merge and (
        tuple(options.states) != PAPER_STATES or options.gate_kind != "full" or options.gated_layers
    ):
        parser.error(
            "--merge writes the paper's kind of gates: one full gate in every layer, which looks at mean_text "
            "and last_text; leave --merge out for others"
        )
    if args.output.exists() and any(args.output.iterdir()):
        parser.error(f"{args.output} exists and is not empty: choose another --output or remove it")

    local = Path(args.model_path).is_dir()
    if not local and not args.merge:  # gates need nothing but the sizes
        source = Path(snapshot_download(args.model_path, allow_patterns=["config.json"]))
    else:
        source = Path(args.model_path) if local else Path(snapshot_download(args.model_path))
    num_layers, hidden_size = decoder_size(source)
    set_seed(args.seed)
    try:
        gates = options.fresh_gates(num_layers, hidden_size).to(getattr(torch, args.dtype))
    except ValueError as error:
        parser.error(str(error))
    if args.merge:
        merge(source, gates, args.output)
    else:
        gates.save_pretrained(args.output)
    count = sum(parameter.numel() for parameter in gates.parameters())
    kind = f"{len(gates.gated_layers)} {gates.kind} gates of width {gates.width}"
    print(f"{args.output}: {kind}, {count / 1e6:.3g} M parameters")


def decoder_size(folder: Path) -> tuple[int, int]:
    """(layers, hidden size) of the decoder, from the checkpoint's ``config.json``.

    Raises:
        FileNotFoundError: when there is no ``config.json``.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: --model-path must be a checkpoint folder or a hub name")
    config = json.loads(path.read_text())
    config = config.get("text_config", config)  # transformers' own LLaVA nests the decoder's config
    return config["num_hidden_layers"], config["hidden_size"]


def merge(source: Path, gates: ExitGates, output: Path) -> None:
    """Copy a checkpoint folder file by file and add one shard with the gates; nothing is held in memory but them.

    Raises:
        FileNotFoundError: when the folder holds no weights.
    """
    bins, safetensors = sorted(source.glob("pytorch_model*.bin")), sorted(source.glob("*.safetensors"))
    if not bins and not safetensors:
        raise FileNotFoundError(f"{source} holds no weights (*.safetensors or pytorch_model*.bin)")
    shutil.copytree(source, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns("gates.*", ".git*"))
    prefix = PAPER_PREFIX + "."
    weights = {prefix + name.removeprefix("layers."): value for name, value in gates.state_dict().items()}
    if safetensors:
        save_file(weights, output / GATE_SHARD, metadata={"format": "pt"})
        _extend_index(output, INDEX, weights, GATE_SHARD, "model.safetensors")
    else:
        shard = "pytorch_model_visual_gates.bin"
        torch.save(weights, output / shard)
        _extend_index(output, "pytorch_model.bin.index.json", weights, shard, "pytorch_model.bin")


def _extend_index(folder: Path, name: str, weights: dict, shard: str, single: str) -> None:
    """Name the gates in the checkpoint's index; make one where the checkpoint was a single file."""
    path = folder / name
    if path.is_file():
        index = json.loads(path.read_text())
    else:
        index = {"metadata": {"total_size": 0}, "weight_map": dict.fromkeys(_keys(folder / single), single)}
    index["weight_map"].update(dict.fromkeys(weights, shard))
    size = sum(value.numel() * value.element_size() for value in weights.values())
    index.setdefault("metadata", {})["total_size"] = index.get("metadata", {}).get("total_size", 0) + size
    path.write_text(json.dumps(index, indent=2) + "\n")


def _keys(path: Path) -> list[str]:
    if path.suffix == ".bin":
        return list(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return list(file.keys())


if __name__ == "__main__":
    main()
