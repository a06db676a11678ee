"""transformers' Trainer with LLaVA's sampler, the projector's own learning rate, and partial checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer

from dyvte.tiny.muon import MuonAdamW
from llava.train import saving
from llava.train.arguments import TrainingArguments
from llava.train.samplers import ModalityLengthSampler

logger = logging.getLogger(__name__)


SAVE = {"full": saving.save_full, "projector": saving.save_projector, "lora": saving.save_lora}
LOAD = {"full": saving.load_full, "projector": saving.load_projector, "lora": saving.load_lora}


class LLaVATrainer(Trainer):
    """Trains a LLaVA model; what is written follows from what is trained (see ``llava.train.saving``).

    Args:
        trains: what is trained, a key of ``SAVE``.
    """

    args: TrainingArguments
    model: Any
    train_dataset: Any

    def __init__(self, *args, trains: str = "full", **kwargs) -> None:
        if trains not in SAVE:
            raise ValueError(f"trains must be one of {', '.join(SAVE)}, got {trains!r}")
        self.trains = trains
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.group_by_modality_length:
            return super()._get_train_sampler(dataset)
        return ModalityLengthSampler(
            dataset.modality_lengths,
            self.args.train_batch_size,
            self.args.world_size * self.args.gradient_accumulation_steps,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Weight decay as usual; groups of their own for the projector when ``mm_projector_lr`` is set, and for
        the decoder layers' matrices when ``muon_lr`` is.
        """
        rates = {"projector": self.args.mm_projector_lr, "muon": self.args.muon_lr}
        if self.optimizer is not None or not any(rate is not None for rate in rates.values()):
            return super().create_optimizer() if model is None else super().create_optimizer(model)
        model = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[bool, str], list] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            kind = "projector" if "mm_projector" in name else "other"
            if rates["muon"] is not None and parameter.ndim == 2 and ".layers." in name:
                kind = "muon"
            groups.setdefault((name in decayed, kind), []).append(parameter)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        if rates["muon"] is not None:
            optimizer_class = MuonAdamW
            options = {name: value for name, value in options.items() if name in ("lr", "betas", "eps")}
        self.optimizer = optimizer_class(
            [
                {
                    "params": parameters,
                    "weight_decay": self.args.weight_decay if decay else 0.0,
                    **({"lr": rates[kind]} if rates.get(kind) is not None else {}),
                    **({"muon": True} if kind == "muon" else {}),
                }
                for (decay, kind), parameters in groups.items()
            ],
            **options,
        )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self._save_weights(model, folder, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        logger.info("saved to %s", folder)

    def _save_weights(self, model, folder: Path, state_dict) -> None:
        SAVE[self.trains](model, folder, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        wrapped = self.model if model is None else model
        own = self.accelerator.unwrap_model(wrapped, keep_torch_compile=False)
        self._load_weights(own, Path(resume_from_checkpoint))

    def _load_weights(self, model, folder: Path) -> None:
        LOAD[self.trains](model, folder)
