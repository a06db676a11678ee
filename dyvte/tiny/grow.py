"""Make a trained decoder deeper: add layers on top that at first pass everything through unchanged.

Trained from scratch in an hour, a deep decoder spreads its work over all of its layers. Pretrained LLMs have spare
depth. Tiny-LLaVA gets it by growing: it is trained shallow, then identity layers (their two projections into the
residual stream are zero) are added on top and training continues with all layers. The technique is known from
progressive stacking (Gong et al., 2019) and block expansion (LLaMA Pro, arXiv:2401.02415).

    python -m dyvte.tiny.grow --model DIR --out DIR --layers 20
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from torch import Tensor

from dyvte.cli import run
from dyvte.io import read_json_object, write_json
from dyvte.weights import load_tensors, write_tensors

WEIGHTS = "model.safetensors"


def grow(weights: dict[str, Tensor], old: int, new: int, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a Llama-like checkpoint with layers ``old .. new - 1`` added as identities.

    Raises:
        ValueError: when the model has not ``old`` layers, or would not grow.
    """
    layers = {int(key.split(".")[2]) for key in weights if key.startswith("model.layers.")}
    if layers != set(range(old)) or new <= old:
        raise ValueError(f"cannot grow a model with layers {sorted(layers)} from {old} to {new} layers")
    generator = torch.Generator().manual_seed(seed)
    grown, first = dict(weights), "model.layers.0."
    for layer in range(old, new):
        for key, value in ((key, value) for key, value in weights.items() if key.startswith(first)):
            if value.ndim == 1:  # norms
                made = torch.ones_like(value)
            elif "o_proj" in key or "down_proj" in key:
                made = torch.zeros_like(value)
            else:
                made = torch.randn(value.shape, generator=generator) * value.shape[1] ** -0.5
            grown[f"model.layers.{layer}.{key.removeprefix(first)}"] = made.to(value.dtype)
    return grown


def grow_folder(args: argparse.Namespace) -> None:
    """Read one checkpoint folder, write another."""
    config = read_json_object(args.model / "config.json")
    weights = grow(load_tensors(args.model / WEIGHTS), config["num_hidden_layers"], args.layers, args.seed)
    ignored = shutil.ignore_patterns("checkpoint-*", "*.bin", "trainer_state.json", WEIGHTS, "config.json")
    shutil.copytree(args.model, args.out, dirs_exist_ok=True, ignore=ignored)
    config["num_hidden_layers"] = args.layers
    config.pop("layer_types", None)
    write_tensors(args.out / WEIGHTS, weights)
    write_json(args.out / "config.json", config, indent=2)
    parameters = sum(weight.numel() for weight in weights.values())
    print(f"{args.out}: {args.layers} layers, {parameters / 1e6:.2f} M parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, type=Path, help="checkpoint folder with model.safetensors")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--layers", required=True, type=int, help="depth of the grown model")
    parser.add_argument("--seed", type=int, default=0)
    run(parser, grow_folder)


if __name__ == "__main__":
    main()
