"""What a checkpoint folder, or a Hub repository, holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers.utils.hub import cached_file

MODEL_TYPE = "llava_llama"


def find_file(path: str, name: str) -> str | None:
    """A file of a checkpoint folder, or of a Hub repository; None when it is not there."""
    if Path(path).is_dir():
        file = Path(path) / name
        return str(file) if file.is_file() else None
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise FileNotFoundError(f"model folder not found: {path}")
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False)


def needed_file(path: str, name: str, why: str) -> str:
    """As :func:`find_file`, but a missing file is an error that says ``why`` it is needed."""
    file = find_file(path, name)
    if file is None:
        raise FileNotFoundError(f"{path} has no {name}: {why}")
    return file


def read_config(path: str) -> dict[str, Any]:
    """The checkpoint's ``config.json``; empty for an adapter that has none."""
    file = find_file(path, "config.json")
    if file is None:
        if find_file(path, "adapter_config.json"):
            return {}
        raise FileNotFoundError(f"{path} is not a checkpoint: it has no config.json")
    return json.loads(Path(file).read_text(encoding="utf-8"))


def is_llava(described: dict[str, Any], path: str) -> bool:
    """Whether a config is LLaVA's; transformers' own LLaVA and other decoders are refused."""
    architectures = described.get("architectures") or []
    model_type = described.get("model_type") or ""
    if "LlavaForConditionalGeneration" in architectures or (
        model_type == "llava" and "text_config" in described
    ):
        raise ValueError(
            f"{path} is a checkpoint of transformers' own LLaVA class: load it with "
            "transformers.LlavaForConditionalGeneration and give that model to dyvte.attach"
        )
    others = [name for name in architectures if name.startswith("Llava") and name != "LlavaLlamaForCausalLM"]
    if others or (model_type.startswith("llava_") and model_type != MODEL_TYPE):
        raise ValueError(f"{path}: only LLaVA on Llama is supported, this is {(others or [model_type])[0]}")
    return model_type in ("llava", MODEL_TYPE) or "mm_vision_tower" in described


def load_bin(file: str) -> dict[str, torch.Tensor]:
    """Tensors of a ``.bin`` file, and nothing but tensors."""
    return torch.load(file, map_location="cpu", weights_only=True)
