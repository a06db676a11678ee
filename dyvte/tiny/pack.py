"""Put a trained Tiny-LLaVA into one folder in LLaVA's format, in bfloat16, its tower in a subfolder.

python -m dyvte.tiny.pack --model DIR --tower DIR --tokenizer DIR --out DIR
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from dyvte.cli import run
from dyvte.io import read_json_object, write_json
from dyvte.tiny.tokenizer import FILES as TOKENIZER_FILES
from dyvte.weights import load_tensors, write_tensors

TOWER_FOLDER = "vision_tower"
TEMPLATE = "vicuna_v1_nosys"
"""The conversation template it was trained with; command lines use it by default, from the config."""
_TOWER_KEY = "model.vision_tower."


def pack(model: Path, tower: Path, tokenizer: Path, out: Path) -> int:
    """Write ``out`` from the folders of a trained model, its tower and its SentencePiece tokenizer.

    Returns:
        Its size in bytes.

    Raises:
        FileNotFoundError: a folder lacks a file.
    """
    (out / TOWER_FOLDER).mkdir(parents=True, exist_ok=True)
    settings = {"tokenizer_padding_side": "right", "conversation_template": TEMPLATE}
    _halve(model, out, {"mm_vision_tower": TOWER_FOLDER, **settings})
    _halve(tower, out / TOWER_FOLDER, {})
    shutil.copy(tower / "preprocessor_config.json", out / TOWER_FOLDER)
    for file in (model / "generation_config.json", *(tokenizer / name for name in TOKENIZER_FILES)):
        shutil.copy(file, out)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _halve(source: Path, target: Path, changes: dict) -> None:
    """Copy weights as bfloat16, without a tower that has its own folder, and the config with ``changes``."""
    for name in ("model.safetensors", "config.json"):
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source / name} is missing: train it first with scripts/tiny/train.sh")
    weights = {
        key: value.to(torch.bfloat16)
        for key, value in load_tensors(source / "model.safetensors").items()
        if not key.startswith(_TOWER_KEY)
    }
    write_tensors(target / "model.safetensors", weights)
    config = read_json_object(source / "config.json")
    config.pop("_name_or_path", None)
    config |= {"dtype": "bfloat16", **changes}
    write_json(target / "config.json", config, indent=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="output folder of stage 2")
    parser.add_argument("--tower", type=Path, required=True)
    tokenizer = "folder that dyvte.tiny.tokenizer wrote"
    parser.add_argument("--tokenizer", type=Path, required=True, help=tokenizer)
    parser.add_argument("--out", type=Path, required=True)
    run(parser, lambda args: print(f"{pack(**vars(args)) / 1e6:.1f} MB written to {args.out}"))


if __name__ == "__main__":
    main()
