"""Training of the exit gates: the model is frozen and only says what the right decisions are.

``GateModel`` is what the Trainer sees: its parameters are the gates; the model beside them is no submodule,
so it is neither wrapped, moved, optimised nor saved. Losses are sums over samples divided by the number of
samples of the whole step, over all processes and accumulated batches: any split of a global batch gives the
same gradient.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProgressCallback

from dyvte.gates.files import has_gates
from dyvte.gates.gate import ExitGates
from dyvte.gates.supervision import Supervision, gate_loss, supervise
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.train.arguments import ModelArguments
from llava.train.llava_trainer import LLaVATrainer

logger = logging.getLogger(__name__)


class SupervisedGates(nn.Module):
    """Gates, and where their supervision comes from.

    Args:
        gates: what is trained, kept in float32.
        alpha: how much larger the answer loss may be after an exit.
    """

    accepts_loss_kwargs = True  # forward scales its loss by num_items_in_batch

    def __init__(self, gates: ExitGates, alpha: float = 1.03) -> None:
        super().__init__()
        self.gates = gates
        self.alpha = alpha

    def supervision(self, layers: list[int] | None, **batch) -> Supervision:
        """What a batch says about these layers, or all."""
        raise TypeError(f"{type(self).__name__} must say where its supervision comes from")

    def forward(
        self, layer: int | None = None, num_items_in_batch: Tensor | int | None = None, **batch
    ) -> dict:
        """Loss of a batch.

        Args:
            layer: the one layer to supervise; all by default.
            num_items_in_batch: what the summed loss is divided by; this batch's usable samples by default.

        Returns:
            ``loss``, and per layer of the model (layers,) long: labels ``seen``, labels that say exit
            (``positive``), decisions that are ``correct``.
        """
        supervision = self.supervision(None if layer is None else [layer], **batch)
        loss, stats = gate_loss(self.gates, supervision)
        if num_items_in_batch is not None:
            loss = loss * (len(supervision.samples) / max(int(num_items_in_batch), 1))
        return {"loss": loss, "seen": stats.seen, "positive": stats.positive, "correct": stats.correct}


class GateModel(SupervisedGates):
    """Gates supervised by a frozen LLaVA model (``base``) on the device where training runs."""

    def __init__(self, gates: ExitGates, base: nn.Module, alpha: float = 1.03) -> None:
        super().__init__(gates, alpha)
        self._base: tuple[Any] = (base.requires_grad_(False).eval(),)

    @property
    def base(self) -> Any:
        """The frozen model, always in evaluation mode."""
        return self._base[0]

    @property
    def config(self):
        """The frozen model's config (DeepSpeed and the Trainer look for one)."""
        return self.base.config

    def supervision(
        self,
        layers: list[int] | None,
        *,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor,
        images=None,
        image_sizes=None,
    ) -> Supervision:
        """Run the frozen model on a batch."""
        spliced = self.base.splice_images(input_ids, attention_mask, labels, images, image_sizes)
        return supervise(
            self.base,
            spliced.inputs_embeds,
            spliced.labels,
            spliced.visual_mask,
            spliced.attention_mask,
            layers=layers,
            states=self.gates.states,
            alpha=self.alpha,
        )


def find_gates(model_args: ModelArguments, num_layers: int, hidden_size: int) -> ExitGates:
    """Gates to start from: ``--visual_gates``, else those in the model's folder, else fresh ones; in float32.

    Raises:
        ValueError: when they do not fit the model.
        FileNotFoundError: when ``--visual_gates`` holds none.
    """
    for folder in (model_args.visual_gates, model_args.model_name_or_path):
        if folder is not None and (folder == model_args.visual_gates or has_gates(folder)):
            logger.info("gates start from %s", folder)
            gates = ExitGates.from_pretrained(folder, dtype=torch.float32)
            gates.check(num_layers, hidden_size)
            return gates
    logger.info("gates start fresh")
    return ExitGates(num_layers, hidden_size)


def usable_samples(batch: dict) -> Tensor:
    """How many rows of a batch have an image and an answer, a scalar tensor; a stored batch knows."""
    if "counted" in batch:
        return batch["counted"].sum()
    has_image = (batch["input_ids"] == IMAGE_TOKEN_INDEX).any(1)
    return (has_image & (batch["labels"] != IGNORE_INDEX).any(1)).sum()


def step_layer(seed: int, step: int, num_layers: int) -> int:
    """The layer that a random-layer step supervises: the same on every process, and after a resume."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    return int(torch.randint(num_layers, (1,), generator=generator))


class GateProgress(ProgressCallback):
    """The progress bar, without the per-layer numbers (those are for the reporters)."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        short = {key: value for key, value in (logs or {}).items() if "/layer_" not in key}
        super().on_log(args, state, control, logs=short, **kwargs)


class GateTrainer(LLaVATrainer):
    """Trains :class:`SupervisedGates`; checkpoints hold gates and optimizer, nothing of the frozen model."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(GateProgress)
        self._counts = torch.zeros(3, self.model.gates.num_layers, dtype=torch.long, device=self.args.device)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """Usable samples of one step, over all its batches and processes."""
        if not batch_samples:
            return None
        total = torch.stack([usable_samples(batch) for batch in batch_samples]).sum().to(device)
        return torch.as_tensor(self.accelerator.gather(total[None])).sum()

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """This process's share of the loss, times their number, because gradients are averaged afterwards."""
        layer = None
        if self.args.gate_supervision == "random":
            layer = step_layer(self.args.seed, self.state.global_step, self.model.gates.num_layers)
        outputs = model(**inputs, layer=layer, num_items_in_batch=num_items_in_batch)
        loss = outputs["loss"]
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        self._counts += torch.stack([outputs[name] for name in ("seen", "positive", "correct")])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Add label rate and accuracy of the gates, over all layers and by layer, to the training logs."""
        if "loss" in logs:
            counts = torch.as_tensor(self.accelerator.reduce(self._counts.clone(), "sum")).double().cpu()
            self._counts.zero_()
            seen, positive, correct = counts.sum(1).tolist()
            if seen:
                logs["gates/label_rate"], logs["gates/accuracy"] = positive / seen, correct / seen
            for layer, (seen, positive, correct) in enumerate(counts.T.tolist()):
                if seen:
                    logs[f"gates/label_rate/layer_{layer:02d}"] = positive / seen
                    logs[f"gates/accuracy/layer_{layer:02d}"] = correct / seen
        super().log(logs, *args, **kwargs)

    def _save_weights(self, model: SupervisedGates, folder: Path, state_dict) -> None:
        model.gates.save_pretrained(folder)

    def _load_weights(self, model: SupervisedGates, folder: Path) -> None:
        saved = ExitGates.from_pretrained(folder)
        saved.check(model.gates.num_layers, model.gates.hidden_size)
        model.gates.load_state_dict(saved.state_dict())
