"""transformers' Trainer for runs that train, and so write, a part of a model.

Subclasses define how the part is written and read. Runs resume from their newest complete checkpoint.
"""

from __future__ import annotations

import abc
import logging
import sys
from pathlib import Path
from typing import Any

from torch.utils.data import Sampler
from transformers import Trainer

from dyvte.gates.options import TrainingArguments
from dyvte.gates.sampler import ModalityLengthSampler
from dyvte.io import read_json

logger = logging.getLogger(__name__)


class PartTrainer(Trainer, abc.ABC):
    """Trainer with LLaVA's sampler, whose checkpoints hold what :meth:`save_part` writes."""

    args: TrainingArguments
    model: Any
    train_dataset: Any

    @abc.abstractmethod
    def save_part(self, model: Any, folder: Path, state_dict: dict | None) -> None:
        """Write what is trained; ``state_dict`` is the gathered one where weights are sharded."""

    @abc.abstractmethod
    def load_part(self, model: Any, folder: Path) -> None:
        """Read what :meth:`save_part` wrote into a model of the same shape."""

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

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        own = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self.save_part(own, folder, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        logger.info("saved to %s", folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        wrapped = self.model if model is None else model
        own = self.accelerator.unwrap_model(wrapped, keep_torch_compile=False)
        self.load_part(own, Path(resume_from_checkpoint))

    def train_to_the_end(self) -> None:
        """Train, from the newest checkpoint where there is one, and write the Trainer's state."""
        output = str(self.args.output_dir)
        checkpoint = self.args.resume_from_checkpoint or newest_checkpoint(output)
        if checkpoint:
            logger.info("resuming from %s", checkpoint)
        self.train(resume_from_checkpoint=checkpoint)
        self.save_state()


def newest_checkpoint(output_dir: str | Path) -> str | None:
    """The newest complete ``checkpoint-N`` of a run; ones cut short by a kill are passed over."""
    folders = {path.name.split("-")[-1]: path for path in Path(output_dir).glob("checkpoint-*")}
    for number in sorted(filter(str.isdigit, folders), key=int, reverse=True):
        folder = folders[number]
        try:
            read_json(folder / "trainer_state.json")  # the last file a checkpoint gets
        except (FileNotFoundError, ValueError):
            logger.warning("%s is incomplete, so it is not resumed from", folder)
            continue
        return str(folder)
    return None


def log_to_stderr(args: TrainingArguments) -> None:
    """Show the log of the first process, and warnings of the others."""
    level = logging.INFO if args.process_index == 0 else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
