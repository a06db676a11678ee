"""What a checkpoint folder, or a Hub repository, holds.

Called from :mod:`llava.convert`, :mod:`llava.model` and :mod:`llava.train`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.utils.hub import cached_file

from dyvte.fields import (
    FLAG,
    MOST_LAYERS,
    TEXT,
    WIDEST,
    Rule,
    check_fields,
    check_sizes,
    either,
    listed,
    number,
    one_of,
    optional,
    whole,
)
from dyvte.io import read_json_object
from dyvte.weights import WEIGHT_FILES, load_tensors, shapes_in, shards_of
from llava.mm_utils import is_aspect_ratio

MODEL_TYPE = "llava_llama"
PACKED = 8
"""Most weights that one stored value may stand for, in quantized checkpoints."""
_ASPECT = Rule("square, pad, anyres or anyres_max_N with a number N", is_aspect_ratio)
_TOKEN = whole(-1, WIDEST * 100)
_TOKENS = {
    **dict.fromkeys(("bos_token_id", "eos_token_id"), optional(either(_TOKEN, listed(_TOKEN)))),
    "pad_token_id": optional(_TOKEN),
}
FIELDS = {
    **dict.fromkeys(("model_type", "conversation_template", "mm_vision_tower"), optional(TEXT)),
    **dict.fromkeys(("mm_projector_type", "mm_patch_merge_type", "mm_vision_select_feature"), optional(TEXT)),
    **dict.fromkeys(("architectures", "layer_types"), optional(listed(TEXT))),
    **dict.fromkeys(("mm_use_im_start_end", "mm_use_im_patch_token"), optional(FLAG)),
    **dict.fromkeys(("sliding_window", "max_sequence_length"), optional(whole(1, 10**9))),
    **_TOKENS,
    "rms_norm_eps": optional(number(0, 1)),
    "tokenizer_model_max_length": optional(whole(1, 10**30)),  # transformers writes 10^30 for no limit
    "tokenizer_padding_side": optional(one_of("left", "right")),
    "mm_hidden_size": optional(whole(1, WIDEST)),
    "image_aspect_ratio": optional(_ASPECT),
    "image_grid_pinpoints": optional(either(TEXT, listed(listed(whole(1, 100_000), 2)))),
}
"""What the fields of a checkpoint's ``config.json`` must be that LLaVA's code reads."""
TOWER_FIELDS = {"mm_vision_select_layer": whole(-MOST_LAYERS, MOST_LAYERS)}
"""The same, where there is a vision tower."""
GENERATION_FIELDS = {
    **_TOKENS,
    **dict.fromkeys(("max_length", "max_new_tokens", "top_k"), optional(whole(0, 10**9))),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size"), optional(whole(0, 10**6))),
    **dict.fromkeys(("num_beams", "num_return_sequences"), optional(whole(1, 1000))),
    **dict.fromkeys(("do_sample", "use_cache"), optional(FLAG)),
    **dict.fromkeys(("temperature", "top_p"), optional(number(0, 1000))),
    **dict.fromkeys(("repetition_penalty", "length_penalty"), optional(number(1e-6, 1000))),
    "stop_strings": Rule("null: answers end with a token", lambda value: value is None),
    "bad_words_ids": optional(listed(listed(_TOKEN))),
}
"""What the fields of ``generation_config.json`` must be that change how a model answers."""


def find_file(path: str, name: str, reached: bool = False) -> str | None:
    """A file of a checkpoint folder, or of a Hub repository; None when it is not there.

    Args:
        reached: it is an error, too, that neither the Hub nor its cache could be asked.

    Raises:
        OSError: there is no such folder or repository, or no access to it.
    """
    if Path(path).is_dir():
        file = Path(path) / name
        return str(file) if file.is_file() else None
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise FileNotFoundError(f"model folder not found: {path}")
    try:
        return cached_file(path, name, _raise_exceptions_for_missing_entries=reached)
    except OSError as error:  # of several lines
        told = " ".join(str(error).split())
        raise OSError(f"{path} is no folder here, and not to be had from the hub: {told}") from error


def needed_file(path: str, name: str, why: str) -> str:
    """As :func:`find_file`, but a missing file is an error that says ``why`` it is needed."""
    file = find_file(path, name)
    if file is None:
        raise FileNotFoundError(f"{path} has no {name}: {why}")
    return file


def read_config(path: str, base: str | None = None) -> dict[str, Any]:
    """The checkpoint's ``config.json``; an adapter that has none has that of its base.

    Raises:
        OSError: there is none, or no such folder or repository.
        ValueError: it is not JSON, or a field is not what it must be.
    """
    file = find_file(path, "config.json", reached=base is None)
    if file is None:
        if base is not None and find_file(path, "adapter_config.json"):
            return read_config(base)
        raise FileNotFoundError(f"{path} is not a checkpoint: it has no config.json")
    described = read_json_object(file)
    check_fields(described, FIELDS, file)
    if described.get("mm_vision_tower"):
        check_fields(described, TOWER_FIELDS, file)
    check_sizes(described, file)
    return described


def check_generation_config(path: str) -> None:
    """Raise ValueError where ``generation_config.json`` is broken, which transformers would pass over."""
    if file := find_file(path, "generation_config.json"):
        check_fields(read_json_object(file), GENERATION_FIELDS, file)


def is_llava(described: dict[str, Any], path: str) -> bool:
    """Whether a config is LLaVA's; transformers' own LLaVA and other decoders are refused."""
    architectures: list[str] = described.get("architectures") or []
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
    why = f"{Path(file).name} names it"
    return {needed_file(path, name, why): keys for name, keys in shards_of(file).items()}


def load_weights(path: str) -> dict[str, torch.Tensor]:
    """All weights of a folder or Hub repository, from safetensors or .bin files, on the CPU.

    Raises:
        FileNotFoundError: when there are none, or a shard is missing.
        ValueError: when a file is broken.
    """
    weights = {}
    for file in _shards(path):
        weights |= load_tensors(file)
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
            found |= {key: shape for key, shape in shapes_in(file).items() if key.startswith(prefix)}
        else:
            found |= dict.fromkeys(key for key in keys if key.startswith(prefix))
    found = {key.removeprefix(prefix): shape for key, shape in found.items()}
    return found if wanted in found else {}


def check_size(config: Any, held: int, path: str) -> None:
    """Raise ValueError where a Llama of these sizes has many times the weights that its files hold, before memory is
    taken for it.
    """
    size = config.hidden_size
    asked = config.vocab_size * size + config.num_hidden_layers * size * (
        2 * size + 3 * config.intermediate_size
    )
    if asked > PACKED * held + WIDEST:
        raise ValueError(
            f"{path}/config.json asks for {asked:.3g} weights (vocab_size, hidden_size, intermediate_size, "
            f"num_hidden_layers), its files hold {held:.3g}"
        )
