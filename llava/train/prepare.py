"""From arguments to a model ready to train: weights, tokenizer, LoRA, vision modules, and what is frozen.

Called by :mod:`llava.train.train`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from dyvte.cli import needs
from dyvte.decoding.sharding import check_processes, shard_layers
from dyvte.weights import check_checkpoint, load_pretrained, reading
from llava.model import builder
from llava.model.checkpoint import check_size, read_config
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.quantization import quantization_config
from llava.model.variants import variant_of
from llava.train.arguments import Arguments, ModelArguments, TrainingArguments

logger = logging.getLogger(__name__)

LORA_TARGETS = r".*model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
"""The linear layers of the decoder; neither tower, projector nor language head."""


def load_model(
    model_args: ModelArguments, training_args: TrainingArguments, attn_implementation: str | None
) -> Any:
    """The language model to train, without its vision modules; of LLaVA's class where it takes images.

    Raises:
        ValueError: for a family other than Llama.
    """
    name = model_args.model_name_or_path
    if "mpt" in name.lower():
        raise ValueError("MPT models are not supported: give a Llama model as --model_name_or_path")
    takes_images = model_args.vision_tower is not None or model_args.tune_visual_gates
    model_class = LlavaLlamaForCausalLM if takes_images else LlamaForCausalLM
    config_class = LlavaConfig if takes_images else LlamaConfig
    # a plain Llama becomes a LLaVA model here
    fields = {**read_config(name), "model_type": config_class.model_type}
    with reading(f"{name}/config.json"):
        config = config_class.from_dict(fields)
    if Path(name).is_dir():
        check_size(config, check_checkpoint(Path(name)), name)
    placed: dict[str, Any] = {}
    if training_args.bits != 16:
        placed["device_map"] = {"": training_args.device}
        placed["quantization_config"] = quantization_config(
            training_args.bits,
            training_args.compute_dtype,
            training_args.double_quant,
            training_args.quant_type,
            skip_modules=["mm_projector", "lm_head"],
        )
    if training_args.device_map:
        placed["device_map"] = training_args.device_map
    model, _ = load_pretrained(
        model_class,
        name,
        config=config,
        cache_dir=training_args.cache_dir,
        attn_implementation=attn_implementation,
        dtype=training_args.weights_dtype,
        **placed,
    )
    model.config.use_cache = False
    if model_args.freeze_backbone:
        model.model.requires_grad_(False)
    checkpointing = bool(training_args.gradient_checkpointing)
    if training_args.bits != 16:
        peft: Any = needs("peft", "train")
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    if checkpointing:
        model.enable_input_require_grads()
    return model


def load_tokenizer(model, model_args: ModelArguments, training_args: TrainingArguments):
    """The tokenizer, padding on the right: with a token of its own for v0, else with unk, as in LLaVA."""
    # as for inference, so that ids agree
    name = model_args.model_name_or_path
    tokenizer = builder.load_tokenizer(name, **variant_of(model_args.vision_tower, name).tokenizer)
    tokenizer.model_max_length = training_args.model_max_length
    tokenizer.padding_side = "right"
    if model_args.version == "v0" and tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        model.resize_token_embeddings(len(tokenizer))
    elif model_args.version != "v0" and tokenizer.unk_token is not None:
        tokenizer.pad_token = tokenizer.unk_token
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def add_lora(model, training_args: TrainingArguments):
    peft: Any = needs("peft", "train")
    config = peft.LoraConfig(
        r=training_args.lora_r,
        lora_alpha=training_args.lora_alpha,
        target_modules=LORA_TARGETS,
        lora_dropout=training_args.lora_dropout,
        bias=training_args.lora_bias,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def add_vision(model, tokenizer, arguments: Arguments):
    """Build tower and projector, write LLaVA's fields into the config, and freeze what is not trained; returns the
    tower.
    """
    model_args, data_args, training_args = arguments
    model.get_model().initialize_vision_modules(model_args=model_args, fsdp=training_args.fsdp or None)
    tower = model.get_vision_tower()
    tower.to(dtype=training_args.compute_dtype, device=training_args.device)
    tower.requires_grad_(False)
    projector = model.get_model().mm_projector

    for source, names in (
        (data_args, ("image_aspect_ratio", "image_grid_pinpoints")),
        (training_args, ("freeze_mm_mlp_adapter", "mm_projector_lr")),
        (model_args, ("tune_mm_mlp_adapter", "mm_use_im_start_end", "mm_use_im_patch_token")),
    ):
        for name in names:
            setattr(model.config, name, getattr(source, name))
    model.config.tokenizer_padding_side = tokenizer.padding_side
    model.config.tokenizer_model_max_length = tokenizer.model_max_length

    if model_args.tune_mm_mlp_adapter:
        model.requires_grad_(False)
        projector.requires_grad_(True)
    if training_args.freeze_mm_mlp_adapter:
        projector.requires_grad_(False)
    projector.to(dtype=training_args.weights_dtype, device=training_args.device)
    model.initialize_vision_tokenizer(model_args, tokenizer=tokenizer)
    return tower


def check_sharding(training_args: TrainingArguments) -> None:
    """Raise ValueError where the gates would be sharded, or the frozen model be in two kinds of pieces."""
    if is_deepspeed_zero3_enabled() or training_args.fsdp:
        raise ValueError(
            "ZeRO-3 and --fsdp shard what is trained, and the gates are small: --shard_model True shards the frozen "
            "model (without --deepspeed, or with scripts/zero2.json)"
        )
    if training_args.device_map and (training_args.shard_model or training_args.world_size > 1):
        raise ValueError(
            "--device_map spreads the frozen model over the GPUs of one process: leave it out where several "
            "processes run, and pass --shard_model True if the model is larger than one GPU"
        )
    if training_args.shard_model:
        check_processes()
        if training_args.bits != 16:
            raise ValueError("--shard_model takes weights in 16 bits or more: leave --bits out")


def load_frozen_llava(arguments: Arguments, attn_implementation: str | None):
    """A finished LLaVA model and its tower, frozen, on the training device; images are prepared as its config says.

    Raises:
        ValueError: when the model has no vision tower, or cannot be placed as the arguments ask.
    """
    model_args, data_args, training_args = arguments
    check_sharding(training_args)
    model = load_model(model_args, training_args, attn_implementation)
    tower = model.get_vision_tower()
    if tower is None:
        raise ValueError(
            f"{model_args.model_name_or_path} has no vision tower: gates need a finished LLaVA model as "
            "--model_name_or_path"
        )
    tower.load_model()
    if training_args.shard_model:
        shard_layers(model, training_args.device)
    elif training_args.bits == 16 and not training_args.device_map:
        model.to(training_args.device)
    tower.to(dtype=training_args.compute_dtype, device=training_args.device)
    aspect = getattr(model.config, "image_aspect_ratio", None) or "square"
    if aspect != data_args.image_aspect_ratio:
        logger.warning("images are prepared with the model's own image_aspect_ratio, %r", aspect)
    data_args.image_aspect_ratio = aspect
    data_args.image_grid_pinpoints = getattr(model.config, "image_grid_pinpoints", None)
    return model.requires_grad_(False).eval(), tower


def log_trainable(model: torch.nn.Module) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("training %d of %d parameters", trained, sum(p.numel() for p in model.parameters()))
