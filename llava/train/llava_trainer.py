"""The Trainer of LLaVA models: the projector's own learning rate, and checkpoints of what is trained.

Called by :mod:`llava.train.train`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dyvte.gates.trainer import PartTrainer
from llava.train import saving
from llava.train.arguments import TrainingArguments

KINDS = {
    "full": (saving.save_full, saving.load_full),
    "projector": (saving.save_projector, saving.load_projector),
    "lora": (saving.save_lora, saving.load_lora),
}
"""What is trained -> how it is written and read."""


class LLaVATrainer(PartTrainer):
    """Trains a LLaVA model; what is written follows from what is trained (see ``llava.train.saving``).

    Args:
        trains: a key of :data:`KINDS`.
    """

    args: TrainingArguments

    def __init__(self, *args, trains: str = "full", **kwargs) -> None:
        self._save_kind, self._load_kind = KINDS[trains]
        super().__init__(*args, **kwargs)

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
            from dyvte.tiny.muon import MuonAdamW  # Tiny-LLaVA's recipe alone

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

    def save_part(self, model, folder: Path, state_dict) -> None:
        self._save_kind(model, folder, model.state_dict() if state_dict is None else state_dict)

    def load_part(self, model, folder: Path) -> None:
        self._load_kind(model, folder)
