"""What the result of a run depends on, kept beside what it wrote: only a run in which all of it is the same goes
on.

Called from :mod:`dyvte.gates` and :mod:`llava.train`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dyvte.io import read_json_object, write_json

FILE = "run.json"

# settings that change where and how a run computes, logs and saves, but not what it computes; folders and files
# count by their content
_GROUPS_WITHOUT_EFFECT = (
    *("log_", "logging_", "save_", "eval_", "hub_", "trackio_", "ddp_", "fsdp"),
    *("gradient_checkpointing", "activation_checkpointing", "dataloader_num", "dataloader_p", "dataloader_m"),
)
_WITHOUT_EFFECT = (
    *("output_dir", "run_name", "project", "report_to", "disable_tqdm", "skip_memory_metrics", "cache_dir"),
    *("debug", "include_num_input_tokens_seen", "include_tokens_per_second", "include_for_metrics"),
    *("prediction_loss_only", "resume_from_checkpoint", "overwrite_output_dir"),
    *("restore_callback_states_from_checkpoint", "push_to_hub", "per_device_eval_batch_size"),
    *("batch_eval_metrics", "evaluation_strategy", "bf16_full_eval", "fp16_full_eval", "do_train", "do_eval"),
    *("do_predict", "enable_jit_checkpoint", "dataloader_in_order", "torch_empty_cache_steps", "use_cpu"),
    *("shard_model", "device_map", "no_cuda", "local_rank", "deepspeed", "accelerator_config"),
    *("parallelism_config", "warmup_ratio", "fp16_opt_level", "half_precision_backend", "mpt_attn_impl"),
    *("lora_weight_path", "is_multimodal", "lazy_preprocess", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "model_name_or_path", "vision_tower", "pretrain_mm_mlp_adapter"),
    *("visual_gates", "store", "gate_dtype", "data_path", "image_folder"),
)


@dataclass(frozen=True)
class RunIdentity:
    """What a training run's result depends on.

    Attributes:
        model, data: SHA-256 of the weights it starts from and of what it is trained on.
        start: of the part to train, before the first step: gates, or a projector's file; None where that is new.
        settings: see :func:`settings_of`.
    """

    model: str | None
    data: str | None
    start: str | None
    settings: dict[str, Any]

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))

    def check(self, checkpoint: Path) -> None:
        """Raise ValueError, naming what differs, unless a checkpoint is of a run with this identity."""
        path, advice = checkpoint / FILE, "remove it, or choose another --output_dir"
        if not path.is_file():
            raise ValueError(f"{checkpoint} does not say of which run it is ({FILE} is missing): {advice}")
        if found := first_difference(read_json_object(path), asdict(self)):
            name, have, want = found
            raise ValueError(
                f"{checkpoint} is of a run with another {name}: it has {have}, this run has {want}; {advice}"
            )


def settings_of(*groups: Any, global_batch: int) -> dict[str, Any]:
    """The fields of dataclasses of flags that change a training run's result.

    Args:
        global_batch: samples per step over all processes; how they are split over devices changes nothing.
    """
    settings: dict[str, Any] = {"global_batch": global_batch}
    for group in groups:
        for field in fields(group):
            if field.name not in _WITHOUT_EFFECT and not field.name.startswith(_GROUPS_WITHOUT_EFFECT):
                value = getattr(group, field.name)
                value = value.value if isinstance(value, Enum) else value
                settings[field.name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return settings


def first_difference(
    found: Mapping[str, Any], wanted: Mapping[str, Any], ignored: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """(name, value found, value wanted) of the first field in which two descriptions differ, also within groups."""
    for name in sorted((found.keys() | wanted.keys()) - set(ignored)):
        have, want = found.get(name), wanted.get(name)
        if isinstance(have, Mapping) and isinstance(want, Mapping):
            if inner := first_difference(have, want):
                return inner
        elif have != want:
            return name, have, want
    return None


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names, types and values of a module's weights."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
