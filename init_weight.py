"""Fresh gates for a LLaVA checkpoint.

    python init_weight.py --model-path liuhaotian/llava-v1.5-7b --output checkpoints/llava-v1.5-7b-gates

writes a small folder (``gates.safetensors``, ``gates.json``). With ``--merge`` the output is a whole checkpoint that
holds the gates under the paper's keys (``model.visual_gates_router.{layer}.{w1,w2}.weight``), as the paper's own
script writes it. ``--gate-kind small`` makes one small gate that all layers share.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from transformers import HfArgumentParser, set_seed

from dyvte.cli import one_line_errors
from dyvte.fields import MOST_LAYERS, WIDEST, check_fields, whole
from dyvte.gates.files import PAPER_PREFIX
from dyvte.gates.gate import ExitGates
from dyvte.gates.options import GateOptions
from dyvte.gates.states import PAPER_STATES
from dyvte.io import read_json_object, write_json
from dyvte.weights import tensors_in


def main() -> None:
    parser = HfArgumentParser(
        GateOptions,  # type: ignore[arg-type] - any dataclass
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model-path", required=True, help="folder or hub name of the gates' model")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge", action="store_true", help="write a whole checkpoint with the paper's keys")
    options, args = parser.parse_args_into_dataclasses(look_for_args_file=False)
    papers = (
        tuple(options.states) == PAPER_STATES and options.gate_kind == "full" and not options.gated_layers
    )
    if args.merge and not papers:
        raise ValueError(
            "--merge writes the paper's kind of gates: one full gate in every layer, which looks at mean_text "
            "and last_text; leave --merge out for others"
        )
    if args.output.exists() and any(args.output.iterdir()):
        raise ValueError(f"{args.output} exists and is not empty: choose another --output or remove it")

    source = Path(args.model_path)
    if not source.is_dir():  # fresh gates need nothing but the sizes
        files = None if args.merge else ["config.json"]
        source = Path(snapshot_download(args.model_path, allow_patterns=files))
    num_layers, hidden_size = decoder_size(source)
    set_seed(args.seed)
    gates = options.fresh_gates(num_layers, hidden_size).to(getattr(torch, args.dtype))
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
        ValueError: when it lacks them.
    """
    config = read_json_object(folder / "config.json")
    config = config.get("text_config", config)  # transformers' own LLaVA nests the decoder's config
    sizes = {"num_hidden_layers": whole(1, MOST_LAYERS), "hidden_size": whole(1, WIDEST)}
    check_fields(config, sizes, folder / "config.json")
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
        save_file(weights, output / "visual_gates.safetensors", metadata={"format": "pt"})
        _extend_index(output, "model.safetensors", weights, "visual_gates.safetensors")
    else:
        torch.save(weights, output / "pytorch_model_visual_gates.bin")
        _extend_index(output, "pytorch_model.bin", weights, "pytorch_model_visual_gates.bin")


def _extend_index(folder: Path, single: str, weights: dict[str, Any], shard: str) -> None:
    """Name the gates in the checkpoint's index; make one where the checkpoint was a single file."""
    path = folder / f"{single}.index.json"
    index: dict[str, Any]
    if path.is_file():
        index = read_json_object(path)
    else:
        index = {"weight_map": dict.fromkeys(dict(tensors_in(folder / single)), single)}
    index["weight_map"].update(dict.fromkeys(weights, shard))
    size = sum(value.numel() * value.element_size() for value in weights.values())
    metadata = index.setdefault("metadata", {})
    metadata["total_size"] = metadata.get("total_size", 0) + size
    write_json(path, index, indent=2)


if __name__ == "__main__":
    with one_line_errors("init_weight.py"):
        main()
