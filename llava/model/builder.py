"""Load a LLaVA checkpoint folder: tokenizer, model, image processor, context length.

What a folder holds decides how it is read (its ``config.json`` and its files), not its name; names only
matter where LLaVA's own tools rely on them ("lora").

Called by :mod:`llava.chat_model`, :mod:`llava.convert` and :mod:`llava.train.prepare`.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaTokenizer

from dyvte.cli import needs
from dyvte.decoding.attach import attach
from dyvte.engine.model import model_name_of, resolved_dtype
from dyvte.gates.exit import LearnedExit
from dyvte.gates.files import has_gates
from dyvte.gates.gate import ExitGates
from dyvte.gates.origin import short_name
from dyvte.io import check_pointer
from dyvte.provenance import checkpoint_digest
from dyvte.weights import check_checkpoint, load_pretrained, load_tensors, reading, some
from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model.checkpoint import (
    check_generation_config,
    check_size,
    find_file,
    has_weights,
    is_llava,
    needed_file,
    read_config,
)
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.multimodal_encoder.builder import resolve_tower_path
from llava.model.quantization import quantization_config
from llava.model.variants import is_internvit, is_mixture, variant_of

logger = logging.getLogger(__name__)

DEFAULT_CONTEXT_LENGTH = 2048
_EXPECTED_EXTRAS = re.compile(
    r"rotary_emb\.inv_freq$|position_ids$|^model\.vision_tower\.|visual_gates_router\."
)


def load_pretrained_model(
    model_path: str,
    model_base: str | None,
    model_name: str,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str = "cuda",
    use_flash_attn: bool = False,
    gates: str | Path | ExitGates | None = None,
    **kwargs,
):
    """Load a checkpoint as LLaVA does.

    Args:
        model_path: folder or Hub id of a whole checkpoint; or, with ``model_base``, of a projector
            (``mm_projector.bin``) or of LoRA weights (``non_lora_trainables.bin`` and an adapter).
        model_base: the language model that a projector or LoRA weights belong to.
        model_name: the checkpoint's name; "lora" in it asks for the LoRA branch when a base is given.
        load_8bit, load_4bit: quantize with bitsandbytes.
        device_map: where layers go when ``device`` is "cuda"; other devices hold the whole model.
        device: "cuda" becomes "cpu", with a warning, on a machine without one.
        gates: folder with exit gates, or the gates; by default those in the checkpoint folder, if any.
        kwargs: further arguments of ``from_pretrained``, such as ``dtype`` (or ``torch_dtype``) and
            ``attn_implementation``. The default dtype is float32 on CPU and float16 elsewhere.

    Returns:
        (tokenizer, model, image_processor, context_len). The processor is None for a plain language model.
        With gates, a :class:`~dyvte.gates.exit.LearnedExit` is attached; its handle is ``model.exit_handle``.

    Raises:
        FileNotFoundError: when a file of the checkpoint, its base or its vision tower is missing.
        ValueError: when the checkpoint is of another family, or weights are missing.
    """
    options = _loading_options(device, device_map, load_8bit, load_4bit, use_flash_attn, kwargs)
    if model_base is not None:
        needed_file(model_base, "config.json", "model_base is the model that these weights belong to")
    described = read_config(model_path, model_base)
    if not is_llava(described, model_path):
        tokenizer, model = _load_language_model(model_path, model_base, options)
        return tokenizer, model, None, _context_length(model)

    with reading(f"{model_path}/config.json"):
        config = LlavaConfig.from_dict({**described, "model_type": LlavaConfig.model_type})
    config.mm_use_im_start_end = getattr(config, "mm_use_im_start_end", False)
    tower_name = getattr(config, "mm_vision_tower", None)
    if tower_name:
        config.mm_vision_tower = _tower_path(tower_name, model_path, model_base)
    is_lora = bool(find_file(model_path, "adapter_config.json")) or "lora" in (model_name or "").lower()
    if model_base is None:
        model = _load_whole(model_path, config, options)
    elif is_lora:
        model = _load_lora(model_path, model_base, config, options)
    else:
        model = _load_projector(model_path, model_base, config, options)
    model.config.mm_vision_tower = tower_name

    variant = variant_of(tower_name, f"{model_name} {model_name_of(model_path)}")
    tokenizer = load_tokenizer(model_base or model_path, **variant.tokenizer)
    _add_image_tokens(model, tokenizer)
    spread = device_map == "auto" and model.device.type == "cuda"
    image_processor = _load_tower(model, keep_float32=spread and variant.float32_tower)
    _attach_gates(model, gates, model_path, model_base)
    return tokenizer, model, image_processor, _context_length(model)


def _loading_options(device, device_map, load_8bit, load_4bit, use_flash_attn, kwargs) -> dict[str, Any]:
    """Keywords for ``from_pretrained``: where, in which dtype, quantized how."""
    options = dict(kwargs)
    torch_dtype = options.pop("torch_dtype", None)
    dtype = options.pop("dtype", None) or torch_dtype or "auto"
    options["dtype"] = getattr(torch, resolved_dtype(device, dtype)) if isinstance(dtype, str) else dtype
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        logger.warning("no CUDA device was found: the model goes to the CPU")
        device = "cpu"
    if torch.device(device).type != "cpu":
        options["device_map"] = device_map if device == "cuda" else {"": device}
    if use_flash_attn:
        options["attn_implementation"] = "flash_attention_2"
    if load_8bit or load_4bit:
        options["quantization_config"] = quantization_config(4 if load_4bit else 8)
    return options


def _tower_path(name: str, model_path: str, model_base: str | None) -> str:
    """The tower's place, looked up in the checkpoint and then in its base.

    Its name, for one that may be inside the checkpoint.
    """
    if is_mixture(name):
        return name
    try:
        return resolve_tower_path(name, model_path)
    except FileNotFoundError:
        if is_internvit(name):
            return name
        if model_base is None:
            raise
        return resolve_tower_path(name, model_base)


def load_tokenizer(path: str, **options: Any):
    """The tokenizer of a LLaVA checkpoint: Llama's, unless ``tokenizer_config.json`` names another class.

    ``options`` replace what that file says.
    """
    if not find_file(path, "tokenizer_config.json") and not find_file(path, "tokenizer.json"):
        needed_file(path, "tokenizer.model", "the checkpoint, or its base, brings the tokenizer")
        return read_tokenizer(LlamaTokenizer, path, add_bos_token=True, **options)
    return read_tokenizer(AutoTokenizer, path, config=LlamaConfig(), use_fast=False, **options)


def read_tokenizer(cls: Any, path: str, **options: Any) -> Any:
    """A tokenizer of one of transformers' classes; no code of the checkpoint runs.

    Raises:
        FileNotFoundError, OSError, ValueError: a file is missing or broken.
    """
    if file := find_file(path, "tokenizer.model"):
        with open(file, "rb") as start:
            check_pointer(start.read(64), file)
    with reading(f"{path} (tokenizer)"):
        tokenizer = cls.from_pretrained(path, trust_remote_code=False, **options)
        known = set(tokenizer("What is shown here?")["input_ids"]) - set(tokenizer.all_special_ids)
    if not known:
        raise ValueError(
            f"the tokenizer of {path} knows no words: its vocabulary (tokenizer.model or tokenizer.json) is missing"
        )
    return tokenizer


def _load_language_model(path: str, base: str | None, options: dict[str, Any]):
    """A language model without images; with a base, PEFT weights on top of it."""
    tokenizer = read_tokenizer(AutoTokenizer, base or path, use_fast=False)
    check_generation_config(base or path)
    model, _ = load_pretrained(AutoModelForCausalLM, base or path, **options)
    return tokenizer, _merge_adapter(model, path) if base else model


def _load_whole(path: str, config: LlavaConfig, options: dict[str, Any]):
    if not has_weights(path):
        hint = "no weights"
        for part in ("adapter_config.json", "mm_projector.bin"):
            if find_file(path, part):
                hint = f"only a part of the weights ({part}): pass the model it belongs to as model_base"
        raise FileNotFoundError(f"{path} holds {hint}")
    model, _ = _from_pretrained(path, config, options)
    return model


def _load_lora(path: str, base: str, config: LlavaConfig, options: dict[str, Any]):
    needed_file(path, "adapter_config.json", "LoRA weights come with an adapter")
    extras = load_tensors(
        needed_file(path, "non_lora_trainables.bin", "it holds the projector of LoRA training")
    )
    extras = {key.removeprefix("base_model."): value for key, value in extras.items()}
    if any(key.startswith("model.model.") for key in extras):
        extras = {key.removeprefix("model."): value for key, value in extras.items()}
    model, info = _from_pretrained(base, config, options, may_lack=True)
    _fill(model, info, extras, path)
    return _merge_adapter(model, path)


def _load_projector(path: str, base: str, config: LlavaConfig, options: dict[str, Any]):
    file = needed_file(
        path, "mm_projector.bin", "with model_base, a folder holds a projector or LoRA weights"
    )
    extras = {
        re.sub(r"^.*mm_projector\.", "model.mm_projector.", k): v for k, v in load_tensors(file).items()
    }
    model, info = _from_pretrained(base, config, options, may_lack=True)
    _fill(model, info, extras, path)
    return model


def _from_pretrained(path: str, config: LlavaConfig, options: dict[str, Any], may_lack: bool = False):
    check_generation_config(path)
    if Path(path).is_dir():
        check_size(config, check_checkpoint(Path(path)), path)
    model, info = load_pretrained(LlavaLlamaForCausalLM, path, may_lack, config=config, **options)
    if unknown := sorted(key for key in info["unexpected_keys"] if not _EXPECTED_EXTRAS.search(key)):
        logger.warning(
            "%s holds %d weights that the model does not use: %s", path, len(unknown), some(unknown)
        )
    return model, info


def _fill(model: nn.Module, info: dict[str, Any], extras: dict[str, torch.Tensor], path: str) -> None:
    """Put ``extras`` into the model; together with the base they must be all its weights."""
    absent = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    if absent := sorted(absent - extras.keys()):
        raise ValueError(f"neither {path} nor its base holds fitting weights for {some(absent)}")
    model.load_state_dict(extras, strict=False)


def _merge_adapter(model: nn.Module, path: str):
    peft: Any = needs("peft", "train")
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if file := find_file(path, name):
            load_tensors(file)  # as PEFT will: it does not look at what it loads
            break
    with reading(path):
        return peft.PeftModel.from_pretrained(model, path).merge_and_unload().eval()


def _add_image_tokens(model, tokenizer) -> None:
    """LLaVA's extra vocabulary, where the config asks for it; embeddings grow when they lack rows."""
    if getattr(model.config, "mm_use_im_patch_token", False):
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if model.config.mm_use_im_start_end:
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def _load_tower(model, keep_float32: bool):
    """Load the vision tower beside the embeddings and return its image processor.

    Spread over GPUs (``device_map="auto"``) LLaVA leaves the tower in float32, and so do we (other variants do not);
    elsewhere it takes the model's dtype.
    """
    tower = model.get_vision_tower()
    if tower is None:
        return None
    tower.load_model()
    if not tower.inside:  # else it was loaded with the model, and is where it belongs
        device = model.get_input_embeddings().weight.device
        tower.to(device=device, dtype=torch.float32 if keep_float32 else model.dtype)
    return tower.image_processor


def _attach_gates(
    model, gates: str | Path | ExitGates | None, model_path: str, model_base: str | None
) -> None:
    """Attach a learned exit with the gates given, or those that the checkpoint folder holds.

    Raises:
        ValueError: they are of another model.
    """
    if gates is None:
        if not Path(model_path).is_dir() or not has_gates(model_path):
            return
        gates = model_path
    if not isinstance(gates, ExitGates):
        gates = ExitGates.from_pretrained(gates)
    decoder = model.get_model()
    gates.check(len(decoder.layers), decoder.config.hidden_size)
    if gates.origin.base_sha256 is not None:
        digest = checkpoint_digest(model_path, model.config.mm_vision_tower, model_base)
        gates.check_base(digest, short_name(model_path))
    model.exit_handle = attach(model, LearnedExit(gates.eval()))


def _context_length(model) -> int:
    return getattr(model.config, "max_sequence_length", DEFAULT_CONTEXT_LENGTH)
