"""The command line of training: LLaVA's flags on top of those of :mod:`dyvte.gates.options`.

Called from :mod:`llava.chat_model` and :mod:`llava.train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import HfArgumentParser

from dyvte.cli import words_of
from dyvte.gates import options
from dyvte.gates.options import flag


@dataclass
class ModelArguments:
    """Which model is trained, and which of its parts."""

    model_name_or_path: str = flag("facebook/opt-125m", "Folder or hub id of the language or LLaVA model.")
    version: str | None = flag(
        None, "Prompt template, a key of conv_templates (v0, for gates v1); unknown names mean vicuna_v1."
    )
    freeze_backbone: bool = flag(False, "Freeze the decoder.")
    tune_mm_mlp_adapter: bool = flag(False, "Train (and save) the projector only.")
    vision_tower: str | None = flag(None, "Folder or hub id of the vision tower; none trains on text alone.")
    mm_vision_select_layer: int = flag(-1, "Which hidden state of the tower is used.")
    pretrain_mm_mlp_adapter: str | None = flag(None, "mm_projector.bin to start from.")
    mm_projector_type: str = flag("linear", "linear, mlpNx_gelu or identity.")
    mm_use_im_start_end: bool = flag(False, "Put start and end tokens around each image.")
    mm_use_im_patch_token: bool = flag(True, "Add LLaVA's patch token to the vocabulary.")
    mm_patch_merge_type: str = flag("flat", "How the tiles of one image are merged.")
    mm_vision_select_feature: str = flag("patch", "patch, or cls_patch to keep the class token.")
    attn_implementation: str | None = flag(
        None, "Attention by transformers' name: eager, sdpa, ... (FlashAttention where it runs, else sdpa)."
    )
    tune_visual_gates: bool = flag(False, "Train the exit gates only; the model stays as it is.")
    visual_gates: str | None = flag(
        None, "Gates to start from, folder or hub name; else the model's own, else fresh."
    )


@dataclass
class DataArguments:
    """What it is trained on."""

    data_path: str | None = flag(
        None, "Instruction data in LLaVA's format: a JSON list, or a sample on each line (.jsonl)."
    )
    lazy_preprocess: bool = flag(False, "Accepted for LLaVA's scripts; samples are always read lazily.")
    is_multimodal: bool = flag(False, "Accepted for LLaVA's scripts; the model decides.")
    image_folder: str | None = flag(None, "Folder that image paths in the data are relative to.")
    image_aspect_ratio: str = flag(
        "square", "square (resize and crop), pad (pad to a square first), anyres or anyres_max_N (tiles)."
    )
    image_grid_pinpoints: str | None = flag(None, "Tile resolutions for image_aspect_ratio anyres.")


@dataclass
class TrainingArguments(options.TrainingArguments):
    """The training arguments of gates and of transformers, with LLaVA's additions."""

    cache_dir: str | None = flag(None, "Where downloaded weights are kept.")
    freeze_mm_mlp_adapter: bool = flag(False, "Freeze the projector.")
    mpt_attn_impl: str | None = flag("triton", "Accepted for LLaVA's scripts; MPT is not supported.")
    model_max_length: int = flag(
        512, "Longest prompt in tokens, those of images counted (LLaVA-1.5: 576 each); what is longer is cut."
    )
    double_quant: bool = flag(True, "4-bit: quantize the quantization constants as well.")
    quant_type: str = flag("nf4", "4-bit: fp4 or nf4.")
    bits: int = flag(16, "16, 8 or 4: precision of the frozen weights (8 and 4 through bitsandbytes).")
    lora_enable: bool = flag(False, "Train LoRA adapters.")
    lora_r: int = flag(64, "LoRA rank.")
    lora_alpha: int = flag(16, "LoRA scale.")
    lora_dropout: float = flag(0.05, "LoRA dropout.")
    lora_weight_path: str = flag("", "Accepted for LLaVA's scripts; ignored.")
    lora_bias: str = flag("none", "Which biases LoRA trains: none, all or lora_only.")
    mm_projector_lr: float | None = flag(None, "Learning rate of the projector, where it differs.")
    shard_model: bool = flag(False, "Gates: the processes share the frozen decoder's layers (FSDP2).")
    device_map: str | None = flag(
        None, "Gates: auto spreads the frozen model over the GPUs of this machine, for one process."
    )
    muon_lr: float | None = flag(None, "Train the decoder layers' matrices with Muon, at this learning rate.")

    def __post_init__(self) -> None:
        if self.bits not in (4, 8, 16):
            raise ValueError(f"--bits must be 4, 8 or 16, got {self.bits}")
        if self.device_map not in (None, "auto"):
            raise ValueError(f"--device_map must be auto, or left out; got {self.device_map!r}")
        super().__post_init__()
        if self.device_map and self.n_gpu > 1:
            self._n_gpu = 1  # else the Trainer copies the gates to every GPU

    @property
    def weights_dtype(self) -> torch.dtype:
        """What trained weights are kept in; fp16 needs float32 weights, as its gradients are scaled."""
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def compute_dtype(self) -> torch.dtype:
        """What frozen parts are kept in."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32


Arguments = tuple[ModelArguments, DataArguments, TrainingArguments]


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Parse the command line (``sys.argv`` by default) and check what must go together.

    Raises:
        ValueError: when the data is missing or two modes exclude each other.
    """
    groups: Any = (ModelArguments, DataArguments, TrainingArguments)
    parser = HfArgumentParser(groups)
    model_args, data_args, training_args = parser.parse_args_into_dataclasses(
        words_of(argv), look_for_args_file=False
    )
    if model_args.version is None and not model_args.tune_visual_gates:
        model_args.version = "v0"
    if data_args.data_path is None:
        raise ValueError("--data_path is missing: name a JSON file of instruction data")
    if (training_args.shard_model or training_args.device_map) and not model_args.tune_visual_gates:
        raise ValueError("--shard_model and --device_map place a frozen model: they need --tune_visual_gates")
    modes = {
        "--tune_visual_gates": model_args.tune_visual_gates,
        "--tune_mm_mlp_adapter": model_args.tune_mm_mlp_adapter,
        "--lora_enable": training_args.lora_enable,
    }
    chosen = [name for name, given in modes.items() if given]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} exclude each other: choose one")
    return model_args, data_args, training_args
