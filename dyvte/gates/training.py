"""Training of the exit gates: labels come from a frozen model's own answers, or from a store of them.

The Trainer sees the gates alone. A frozen model is not a submodule of them, so it is neither wrapped, moved,
optimized nor saved. The batches of a step are labeled before its loss is computed: losses are sums over the labeled
samples, divided by their number over all processes and accumulated batches, so any split of a global batch gives the
same gradient.

Called by :mod:`dyvte.gates.fit` and :mod:`llava.train.train`.
"""

from __future__ import annotations

import abc
import logging
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import ProgressCallback

from dyvte.gates.files import has_gates
from dyvte.gates.gate import ExitGates
from dyvte.gates.supervision import Supervision, gate_loss, supervise
from dyvte.gates.trainer import PartTrainer

if TYPE_CHECKING:
    from dyvte.engine.model import ChatModel

logger = logging.getLogger(__name__)


class SupervisedGates(nn.Module, abc.ABC):
    """Gates, and where their supervision comes from.

    Args:
        gates: what is trained, kept in float32.
        alpha: how much larger the answer loss may be after an exit.
        config: of the model the gates are for; DeepSpeed and the Trainer read it.
    """

    accepts_loss_kwargs = True  # forward scales its loss by num_items_in_batch

    def __init__(self, gates: ExitGates, alpha: float = 1.03, config: Any = None) -> None:
        super().__init__()
        self.gates = gates
        self.alpha = alpha
        self.config = config

    @abc.abstractmethod
    def supervise(self, batch: dict, layers: list[int] | None) -> Supervision:
        """Label a collated batch, for these layers or all."""

    def forward(self, supervision: Supervision, num_items_in_batch: Tensor | int | None = None) -> dict:
        """Loss of a labeled batch.

        Args:
            num_items_in_batch: what the summed loss is divided by; this batch's samples by default.

        Returns:
            ``loss`` and ``counts``, as :func:`gate_loss` gives them.
        """
        loss, counts = gate_loss(self.gates, supervision)
        if num_items_in_batch is not None:
            loss = loss * (len(supervision.samples) / max(int(num_items_in_batch), 1))
        return {"loss": loss, "counts": counts}


class GateModel(SupervisedGates):
    """Gates supervised by a frozen model on the device where training runs; its batches are its own collator's."""

    def __init__(self, gates: ExitGates, base: ChatModel, alpha: float = 1.03) -> None:
        super().__init__(gates, alpha, base.model.config)
        base.model.requires_grad_(False).eval()
        self._base = (base,)  # a tuple, so that it is no submodule

    def supervise(self, batch: dict, layers: list[int] | None) -> Supervision:
        """Run the frozen model on a batch."""
        (base,) = self._base
        embedded = base.embed_samples(batch)
        return supervise(
            base.model, **vars(embedded), layers=layers, states=self.gates.states, alpha=self.alpha
        )


def find_gates(
    num_layers: int, hidden_size: int, visual_gates: str | None, model_path: str | None = None
) -> ExitGates:
    """Gates to start from: those in ``visual_gates``, else those in the model's folder, else fresh ones; in float32.

    Raises:
        ValueError: when they do not fit the model.
        FileNotFoundError: when ``visual_gates`` is given and holds none.
    """
    if visual_gates is None and model_path is not None and has_gates(model_path):
        visual_gates = model_path
    if visual_gates is None:
        logger.info("gates start fresh")
        return ExitGates(num_layers, hidden_size)
    logger.info("gates start from %s", visual_gates)
    gates = ExitGates.from_pretrained(visual_gates, dtype=torch.float32)
    gates.check(num_layers, hidden_size)
    return gates


def step_layer(seed: int, step: int, num_layers: int) -> int:
    """The layer that a random-layer step supervises: the same on every process, and after a resume."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    return int(torch.randint(num_layers, (1,), generator=generator))


class GateProgress(ProgressCallback):
    """The progress bar without the per-layer numbers, which go to the reporters alone."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        short = {key: value for key, value in (logs or {}).items() if "/layer_" not in key}
        super().on_log(args, state, control, logs=short, **kwargs)


class GateTrainer(PartTrainer):
    """Trains :class:`SupervisedGates`; checkpoints hold the gates and the optimizer, not the frozen model."""

    model: SupervisedGates

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(GateProgress)
        self._counts = torch.zeros(3, self.model.gates.num_layers, dtype=torch.long, device=self.args.device)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """The labeled batches of one step, and how many samples they hold over all processes."""
        layers = None
        if self.args.gate_supervision == "random":
            layers = [step_layer(self.args.seed, self.state.global_step, self.model.gates.num_layers)]
        labeled = []
        with self.compute_loss_context_manager():
            for batch in islice(epoch_iterator, num_batches):
                labeled.append(self.model.supervise(self._prepare_inputs(batch), layers))
        if not labeled:
            return [], None
        count = torch.tensor([sum(len(one.samples) for one in labeled)], device=device)
        total = torch.as_tensor(self.accelerator.gather(count)).sum()
        return [{"supervision": one} for one in labeled], total

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """This process's share of the loss, times the number of processes, because gradients are averaged."""
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        loss = outputs["loss"]
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        self._counts += outputs["counts"]
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Add label rate and accuracy of the gates, over all layers and by layer, to the training logs."""
        if "loss" in logs:
            counts = torch.as_tensor(self.accelerator.reduce(self._counts.clone(), "sum")).double().cpu()
            self._counts.zero_()
            columns = {"": counts.sum(1)} | {f"/layer_{n:02d}": column for n, column in enumerate(counts.T)}
            for where, column in columns.items():
                seen, positive, correct = column.tolist()
                if seen:
                    logs[f"gates/label_rate{where}"] = positive / seen
                    logs[f"gates/accuracy{where}"] = correct / seen
        super().log(logs, *args, **kwargs)

    def save_part(self, model: SupervisedGates, folder: Path, state_dict: dict | None) -> None:
        model.gates.save_pretrained(folder)

    def load_part(self, model: SupervisedGates, folder: Path) -> None:
        saved = ExitGates.from_pretrained(folder)
        saved.check(model.gates.num_layers, model.gates.hidden_size)
        model.gates.load_state_dict(saved.state_dict())
