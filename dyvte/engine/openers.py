"""Which code opens a model: LLaVA's for LLaVA's own checkpoints and plain language models, ``transformers`` for those
that bring a processor and a chat template. The functions are found by name, so that nothing here imports them.

An installed package adds families, or replaces one, with an entry point of the group ``dyvte.models``:

    [project.entry-points."dyvte.models"]
    llava = "llava.chat_model:open_chat_model"

Called from :mod:`dyvte.engine`, :mod:`dyvte.gates`, :mod:`dyvte.small`, :mod:`dyvte.tiny` and :mod:`llava.train`.
"""

from __future__ import annotations

import importlib.metadata
import pkgutil
from collections.abc import Callable
from dataclasses import replace

import torch
from accelerate import PartialState
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from dyvte.decoding.attach import run_info
from dyvte.decoding.sharding import check_processes, shard_layers
from dyvte.engine.model import ChatModel, ModelOptions
from dyvte.families.base import REFUSED
from dyvte.gates.hub import gates_folder
from dyvte.weights import reading

GROUP = "dyvte.models"
LLAVA, TRANSFORMERS = "llava", "transformers"
SHIPPED = {
    LLAVA: "llava.chat_model:open_chat_model",
    TRANSFORMERS: "dyvte.engine.processor_model:open_processor_model",
}
"""What is found in a checkout that is not installed as well."""

THINKER = "thinker_config"
"""Field with the config of the part that sees and writes, in checkpoints whose other parts speak (Qwen-Omni)."""

Opener = Callable[[ModelOptions], ChatModel]


def find_opener(family: str) -> Opener:
    """The function that opens models of a family.

    Raises:
        ValueError: there is no such family.
    """
    installed = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if family in installed:
        return installed[family].load()
    if family not in SHIPPED:
        known = ", ".join(sorted({*SHIPPED, *installed}))
        raise ValueError(f"no model family is named {family!r}; there are {known}")
    return pkgutil.resolve_name(SHIPPED[family])


def family_of(model_path: str, model_base: str | None = None) -> str:
    """Who opens a checkpoint, by its ``config.json``; LLaVA's code also says what is wrong where there is none."""
    if model_base is not None:
        return LLAVA
    try:
        with reading(model_path):
            config, _ = PretrainedConfig.get_config_dict(model_path)
    except (OSError, ValueError):
        return LLAVA
    if not isinstance(config, dict):
        return LLAVA
    model_type = str(config.get("model_type"))
    brings_tower = "vision_config" in config or THINKER in config
    of_llava = "mm_vision_tower" in config or model_type == "llava_llama"
    of_llava = of_llava or (model_type == "llava" and not brings_tower)
    takes_images = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or model_type in REFUSED
    is_known = model_type in CONFIG_MAPPING or "model_type" not in config
    return TRANSFORMERS if (brings_tower or takes_images or not is_known) and not of_llava else LLAVA


def open_model(options: ModelOptions, family: str | None = None) -> ChatModel:
    """Load a model; its policy is a learned exit where there are gates, else ``NoExit``.

    Args:
        family: who opens it; by default as its config says.

    Raises:
        FileNotFoundError: a file of the model is missing.
        ValueError: there is no such family or template, the checkpoint is not of this family, or
            ``options.shard_model`` is set where processes cannot share the model.
    """
    opener = find_opener(family or family_of(options.model_path, options.model_base))
    if options.gates:
        options = replace(options, gates=gates_folder(options.gates))
    if not options.shard_model:
        return _with_kernel(opener(options), options)
    kind = torch.device(options.device).type  # which GPU follows from the process
    device = PartialState(cpu=kind == "cpu").device
    assert device is not None
    check_processes()
    chat = _with_kernel(opener(replace(options, device=kind)), options)
    shard_layers(chat.model, device)
    if chat.handle is not None:
        chat.handle.policy = chat.handle.policy  # puts gates where the layers are now
        chat.handle.run = replace(chat.handle.run, device=run_info(chat.model).device)
    return chat


def _with_kernel(chat: ChatModel, options: ModelOptions) -> ChatModel:
    if chat.handle is not None and options.attn_implementation is not None:
        chat.handle.kernel = options.attn_implementation
    return chat
