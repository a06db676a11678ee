"""The parts of a trained Small-LLaVA that are shipped: LoRA adapter, projector and tower, in bfloat16.

``scripts/merge_lora_weights.py`` puts them on top of the language model that ``scripts/small/get.sh`` makes.

    python -m dyvte.small.pack --lora DIR --tower DIR --out DIR
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from dyvte.cli import run
from dyvte.io import read_json_object, write_json
from dyvte.tiny.pack import TOWER_FOLDER
from dyvte.weights import load_tensors, write_tensors

TEMPLATE = "chatml_direct"
"""The conversation template it was trained with; command lines use it by default, from the config."""
ADAPTER, PROJECTOR = "adapter_model.safetensors", "non_lora_trainables.bin"


def pack(lora: Path, tower: Path, out: Path) -> int:
    """Write ``out`` from a folder that LoRA training wrote (or a checkpoint of it) and a tower.

    Returns:
        Its size in bytes.

    Raises:
        FileNotFoundError: the folder lacks a file.
    """
    for name in (ADAPTER, "adapter_config.json", PROJECTOR, "config.json"):
        if not (lora / name).is_file():
            raise FileNotFoundError(f"{lora / name} is missing: train it first with scripts/small/train.sh")
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / ADAPTER, _halved(lora / ADAPTER))
    torch.save(_halved(lora / PROJECTOR), out / PROJECTOR)
    adapter = read_json_object(lora / "adapter_config.json")
    adapter.pop("base_model_name_or_path", None)  # a folder of the machine
    # without the defaults of options that other versions of peft may not know
    write_json(out / "adapter_config.json", {k: v for k, v in adapter.items() if v is not None}, indent=2)
    config = read_json_object(lora / "config.json")
    config.pop("_name_or_path", None)
    changes = {"mm_vision_tower": TOWER_FOLDER, "conversation_template": TEMPLATE, "dtype": "bfloat16"}
    write_json(out / "config.json", {**config, **changes}, indent=2)
    shutil.copytree(tower, out / TOWER_FOLDER, dirs_exist_ok=True)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _halved(file: Path) -> dict[str, torch.Tensor]:
    return {name: weight.to(torch.bfloat16).contiguous() for name, weight in load_tensors(file).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--lora", type=Path, required=True, help="output folder of stage 2, or a checkpoint of it"
    )
    parser.add_argument("--tower", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    run(parser, lambda args: print(f"{pack(**vars(args)) / 1e6:.1f} MB written to {args.out}"))


if __name__ == "__main__":
    main()
