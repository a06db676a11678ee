"""LLaVA's tool: put a LoRA adapter and a projector into the model they belong to, as one folder.

python scripts/merge_lora_weights.py --model-path LORA --model-base BASE --save-model-path OUT
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dyvte.cli import run
from dyvte.engine.model import model_name_of
from llava.model.builder import load_pretrained_model
from llava.train.saving import save_full


def merge(model_path: Path, model_base: Path, save_model_path: Path, dtype: str) -> None:
    """Write the merged model in this dtype, with its tokenizer, and its tower if that lies inside ``model_path``.

    Sums are taken in float32.

    Raises:
        ValueError: there is something at ``save_model_path``, which appears when it is whole.
    """
    if save_model_path.exists():
        raise ValueError(f"{save_model_path} is there already: remove it, or name another folder")
    tokenizer, model, _, _ = load_pretrained_model(
        str(model_path), str(model_base), model_name_of(str(model_path)), device="cpu", dtype=torch.float32
    )
    model.to(getattr(torch, dtype))
    save_model_path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=save_model_path.parent) as scratch:
        made = Path(scratch) / "model"
        save_full(model, made)
        tokenizer.save_pretrained(made)
        tower = model_path / str(model.config.mm_vision_tower)
        if tower.is_dir():
            shutil.copytree(tower, made / tower.name)
        made.rename(save_model_path)
    print(f"merged model written to {save_model_path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("--model-path", "--model-base", "--save-model-path"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    run(parser, lambda args: merge(**vars(args)))


if __name__ == "__main__":
    main()
