"""transformers' Trainer for runs that train, and so write, a part of a model.

Subclasses define how the part is written and read. Runs resume from their newest complete checkpoint. Each output
folder has one writer, and workers do not outlive what started them.

Called from :mod:`dyvte.gates` and :mod:`llava.train`.
"""

from __future__ import annotations

import abc
import logging
import os
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data import Sampler
from transformers import Trainer

from dyvte.decoding.sharding import close_group_at_exit
from dyvte.gates.identity import RunIdentity
from dyvte.gates.options import TrainingArguments
from dyvte.gates.sampler import ModalityLengthSampler
from dyvte.io import locked, read_json
from dyvte.weights import reading, writing

logger = logging.getLogger(__name__)

WAIT = 5.0
"""Seconds to wait for a lock: workers whose launcher was killed hold it until they notice."""


class PartTrainer(Trainer, abc.ABC):
    """Trainer with LLaVA's sampler, whose checkpoints hold what :meth:`save_part` writes.

    Attributes:
        identity: of this run; known to the process that writes.
    """

    args: TrainingArguments
    identity: RunIdentity | None = None
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
        if self.identity is not None and folder != Path(self.args.output_dir or "."):
            self.identity.write(folder)
        logger.info("saved to %s", folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with writing(Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(checkpoint or ""):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(checkpoint or ""):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        wrapped = self.model if model is None else model
        own = self.accelerator.unwrap_model(wrapped, keep_torch_compile=False)
        self.load_part(own, Path(resume_from_checkpoint))

    def train_to_the_end(self) -> None:
        """Train, from the newest checkpoint where there is one, and write what was trained.

        Raises:
            ValueError: the checkpoint is of another run, or ``--resume_from_checkpoint`` names none.
            OSError: a checkpoint cannot be written; the earlier ones are kept.
        """
        checkpoint = checkpoint_of(self.args)
        if checkpoint is not None:
            if self.identity is not None:
                self.identity.check(Path(checkpoint))
            logger.info("resuming from %s", checkpoint)
        self.train(resume_from_checkpoint=checkpoint)
        self.model.config.use_cache = True
        with writing(self.args.output_dir or "."):
            self.save_state()
            self.save_model()


def checkpoint_of(args: TrainingArguments) -> str | None:
    """What a run goes on from; None where it begins.

    ``--resume_from_checkpoint`` may name a checkpoint, be True for the newest one, which then has to exist, or False
    for none. By default it is the newest one, if any.

    Raises:
        ValueError: there is no such checkpoint, or it is incomplete.
    """
    asked, output = args.resume_from_checkpoint, args.output_dir or "."
    if asked is None or asked.lower() == "true":
        newest = newest_checkpoint(output)
        if newest is None and asked is not None:
            raise ValueError(
                f"--resume_from_checkpoint: {output} holds no complete checkpoint to resume from"
            )
        return newest
    if asked.lower() == "false":
        return None
    if not is_complete(Path(asked)):
        raise ValueError(f"--resume_from_checkpoint {asked} is not the folder of a complete checkpoint")
    return asked


def is_complete(checkpoint: Path) -> bool:
    """Whether the last file that a checkpoint gets is there and whole."""
    try:
        read_json(checkpoint / "trainer_state.json")
    except (OSError, ValueError):
        return False
    return True


def newest_checkpoint(output_dir: str | Path) -> str | None:
    """The newest complete ``checkpoint-N`` of a run; ones cut short by a kill are passed over."""
    folders = {path.name.split("-")[-1]: path for path in Path(output_dir).glob("checkpoint-*")}
    for number in sorted(filter(str.isdigit, folders), key=int, reverse=True):
        folder = folders[number]
        if is_complete(folder):
            return str(folder)
        logger.warning("%s is incomplete, so it is not resumed from", folder)
    return None


def log_to_stderr(args: TrainingArguments) -> None:
    """Show the log of the first process, and warnings of the others."""
    level = logging.INFO if args.process_index == 0 else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")


@contextmanager
def only_run(args: TrainingArguments) -> Generator[None]:
    """Hold the output folder of a training run, which is made where it is missing, against other runs; the run's
    processes end when the launcher that started them is killed.

    Raises:
        ValueError: another process writes to the folder.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # by hand, it may outlive its shell
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    close_group_at_exit()
    if args.process_index != 0:
        yield
        return
    folder = Path(args.output_dir or ".")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", f"writing {folder}", WAIT):
        yield


def _end_with(parent: int) -> None:
    """End this process at once when its parent is another one than it was; what it writes is whole or not there."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
