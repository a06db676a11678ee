"""What a checkpoint folder, or a Hub repository, holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers.utils.hub import cached_file

from dyvte.io import read_json_object

MODEL_TYPE = "llava_llama"
WEIGHT_FILES = tuple(
    name + suffix for name in ("model.safetensors", "pytorch_model.bin") for suffix in ("", ".index.json")
)


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
    return model_type in ("llava", MODEL_TYPE, "eagle_llama") or "mm_vision_tower" in described


def has_weights(path: str) -> bool:
    """Whether a folder or Hub repository holds weights, whole or in shards."""
    return _weight_file(path) is not None


def _weight_file(path: str) -> str | None:
    """The file of all weights, or the index of their shards: the first of ``WEIGHT_FILES`` that is there."""
    return next((file for name in WEIGHT_FILES if (file := find_file(path, name))), None)


def _shards(path: str) -> dict[str, set[str] | None]:
    """Files of weights, each with the keys that the index says it holds (None where there is no index)."""
    file = _weight_file(path)
    if file is None:
        raise FileNotFoundError(f"{path} holds no weights")
    if not file.endswith(".json"):
        return {file: None}
    shards: dict[str, set[str] | None] = {}
    for key, name in read_json_object(file)["weight_map"].items():
        shard = needed_file(path, name, f"{Path(file).name} names it")
        shards.setdefault(shard, set()).add(key)  # type: ignore[union-attr] - none of these is None
    return shards


def load_weights(path: str) -> dict[str, torch.Tensor]:
    """All weights of a folder or Hub repository, from safetensors or .bin files, on the CPU.

    Raises:
        FileNotFoundError: when there are none, or a shard is missing.
    """
    weights = {}
    for file in _shards(path):
        weights |= load_file(file) if file.endswith(".safetensors") else load_bin(file)
    return weights


def tensor_shapes(path: str, prefix: str, wanted: str) -> dict[str, tuple[int, ...] | None]:
    """Names of a checkpoint's weights that start with ``prefix``, without it; empty when ``wanted`` is not there.

    Only ``wanted`` is sure to have its shape. No more than headers is read.
    """
    found: dict[str, tuple[int, ...] | None] = {}
    if not has_weights(path):
        return found
    for file, keys in _shards(path).items():
        if keys is None or prefix + wanted in keys:
            found |= {key: shape for key, shape in _shapes_in(file).items() if key.startswith(prefix)}
        else:
            found |= dict.fromkeys(key for key in keys if key.startswith(prefix))
    found = {key.removeprefix(prefix): shape for key, shape in found.items()}
    return found if wanted in found else {}


def _shapes_in(file: str) -> dict[str, tuple[int, ...]]:
    if not file.endswith(".safetensors"):
        tensors = torch.load(file, map_location="meta", mmap=True, weights_only=True)
        return {key: tuple(value.shape) for key, value in tensors.items()}
    with safe_open(file, framework="pt") as opened:
        return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118


def load_bin(file: str) -> dict[str, torch.Tensor]:
    """Tensors of a ``.bin`` file, and nothing but tensors."""
    return torch.load(file, map_location="cpu", weights_only=True)
