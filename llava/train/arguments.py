"""The command line of training: LLaVA's flags, transformers' flags, and those transformers 5 has dropped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import HfArgumentParser

logger = logging.getLogger(__name__)


def _flag(default, text: str):
    """A dataclass field with a help text."""
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """Which model is trained, and which of its parts."""

    model_name_or_path: str = _flag("facebook/opt-125m", "Folder or hub id of the language or LLaVA model.")
    version: str = _flag("v0", "Prompt template, a key of conv_templates; unknown names mean vicuna_v1.")
    freeze_backbone: bool = _flag(False, "Freeze the decoder.")
    tune_mm_mlp_adapter: bool = _flag(False, "Train (and save) the projector only.")
    vision_tower: str | None = _flag(None, "Folder or hub id of the vision tower; none trains on text alone.")
    mm_vision_select_layer: int = _flag(-1, "Which hidden state of the tower is used.")
    pretrain_mm_mlp_adapter: str | None = _flag(None, "mm_projector.bin to start from.")
    mm_projector_type: str = _flag("linear", "linear, mlpNx_gelu or identity.")
    mm_use_im_start_end: bool = _flag(False, "Put start and end tokens around each image.")
    mm_use_im_patch_token: bool = _flag(True, "Add LLaVA's patch token to the vocabulary.")
    mm_patch_merge_type: str = _flag("flat", "How the tiles of one image are merged.")
    mm_vision_select_feature: str = _flag("patch", "patch, or cls_patch to keep the class token.")
    tune_visual_gates: bool = _flag(False, "Train the exit gates only; the model stays as it is.")
    visual_gates: str | None = _flag(None, "Folder of gates to start from; else the model's own, else fresh.")


@dataclass
class DataArguments:
    """What it is trained on."""

    data_path: str | None = _flag(None, "Instruction data: a JSON list in LLaVA's format.")
    lazy_preprocess: bool = _flag(False, "Accepted for LLaVA's scripts; samples are always read lazily.")
    is_multimodal: bool = _flag(False, "Set by the code: whether a vision tower is in use.")
    image_folder: str | None = _flag(None, "Folder that image paths in the data are relative to.")
    image_aspect_ratio: str = _flag("square", "square (resize and crop) or pad (pad to a square first).")
    image_grid_pinpoints: str | None = _flag(None, "Tile resolutions for image_aspect_ratio anyres.")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' training arguments, LLaVA's additions, and flags that only older transformers know."""

    cache_dir: str | None = _flag(None, "Where downloaded weights are kept.")
    optim: str = _flag("adamw_torch", "Optimizer.")
    remove_unused_columns: bool = _flag(False, "Keep as it is: the collator needs every field.")
    freeze_mm_mlp_adapter: bool = _flag(False, "Freeze the projector.")
    mpt_attn_impl: str | None = _flag("triton", "Accepted for LLaVA's scripts; MPT is not supported.")
    model_max_length: int = _flag(512, "Longest prompt in tokens, the images not counted.")
    double_quant: bool = _flag(True, "4-bit: quantise the quantisation constants as well.")
    quant_type: str = _flag("nf4", "4-bit: fp4 or nf4.")
    bits: int = _flag(16, "16, 8 or 4: precision of the frozen weights (8 and 4 through bitsandbytes).")
    lora_enable: bool = _flag(False, "Train LoRA adapters.")
    lora_r: int = _flag(64, "LoRA rank.")
    lora_alpha: int = _flag(16, "LoRA scale.")
    lora_dropout: float = _flag(0.05, "LoRA dropout.")
    lora_weight_path: str = _flag("", "Accepted for LLaVA's scripts; it is read by nothing.")
    lora_bias: str = _flag("none", "Which biases LoRA trains: none, all or lora_only.")
    mm_projector_lr: float | None = _flag(None, "Learning rate of the projector, where it differs.")
    muon_lr: float | None = _flag(
        None, "Train the decoder layers' matrices with Muon, at this learning rate."
    )
    group_by_modality_length: bool = _flag(False, "Group samples by modality and length.")
    gate_supervision: str = _flag("all", "all: labels of every layer in one pass; random: one layer a step.")
    gate_alpha: float = _flag(1.03, "How much larger the answer loss may be after an exit.")

    # Flags of older transformers, mapped to today's names or ignored with a warning.
    evaluation_strategy: str | None = _flag(None, "Older name of --eval_strategy.")
    warmup_ratio: float | None = _flag(None, "Share of steps spent warming up (now: --warmup_steps).")
    no_cuda: bool = _flag(False, "Older name of --use_cpu.")
    group_by_length: bool = _flag(False, "Older name of --train_sampling_strategy group_by_length.")
    logging_dir: str | None = _flag(None, "Ignored: set TENSORBOARD_LOGGING_DIR instead.")
    overwrite_output_dir: bool = _flag(False, "Ignored: a run resumes from its newest checkpoint.")
    save_safetensors: bool = _flag(True, "Ignored: weights are saved as safetensors.")
    include_tokens_per_second: bool = _flag(False, "Ignored.")
    fp16_opt_level: str | None = _flag(None, "Ignored.")
    half_precision_backend: str | None = _flag(None, "Ignored.")

    def __post_init__(self) -> None:
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.warmup_ratio is not None:
            if not 0 <= self.warmup_ratio < 1:
                raise ValueError(f"--warmup_ratio must lie in [0, 1), got {self.warmup_ratio}")
            self.warmup_steps = self.warmup_steps or self.warmup_ratio
        if self.no_cuda:
            self.use_cpu = True
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        if self.tf32 and not torch.cuda.is_available():
            logger.warning("--tf32 needs a GPU; it is ignored on this machine")
            self.tf32 = None
        for name in ("logging_dir", "overwrite_output_dir", "fp16_opt_level", "half_precision_backend"):
            if getattr(self, name):
                logger.warning("--%s is ignored: this version of transformers has no such flag", name)
        if self.bits not in (4, 8, 16):
            raise ValueError(f"--bits must be 4, 8 or 16, got {self.bits}")
        if self.gate_supervision not in ("all", "random"):
            raise ValueError(f"--gate_supervision must be 'all' or 'random', got {self.gate_supervision!r}")
        if self.gate_alpha <= 0:
            raise ValueError(f"--gate_alpha must be positive, got {self.gate_alpha}")
        super().__post_init__()

    @property
    def weights_dtype(self) -> torch.dtype:
        """What trained weights are kept in; fp16 needs float32 weights, as its gradients are scaled."""
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def compute_dtype(self) -> torch.dtype:
        """What frozen parts are kept in."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32


def parse_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Parse the command line (``sys.argv`` by default) and check what must go together.

    Raises:
        ValueError: when the data is missing or two modes exclude each other.
    """
    groups: Any = (ModelArguments, DataArguments, TrainingArguments)
    parser = HfArgumentParser(groups)
    model_args, data_args, training_args = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    if data_args.data_path is None:
        raise ValueError("--data_path is missing: name a JSON file of instruction data")
    modes = {
        "--tune_visual_gates": model_args.tune_visual_gates,
        "--tune_mm_mlp_adapter": model_args.tune_mm_mlp_adapter,
        "--lora_enable": training_args.lora_enable,
    }
    chosen = [name for name, given in modes.items() if given]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} exclude each other: choose one")
    return model_args, data_args, training_args
