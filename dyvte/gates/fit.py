"""Fit gates to a store of states, without the model: what ``llava.train.train --tune_visual_gates`` does on it.

    python -m dyvte.gates.fit --store STORE --states mean_text last_text --output_dir GATES \
        --num_train_epochs 1 --per_device_train_batch_size 16 --learning_rate 4e-5 --lr_scheduler_type cosine

Flags are transformers' and those of gate training (``--gate_alpha``, ``--gate_supervision``,
``--group_by_modality_length``, ``--seed``, ...). With the same ones, gates and batches come in the same order as in
direct training, and so do the gates that result. A run resumes from the newest checkpoint in its output folder.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import HfArgumentParser, set_seed

from dyvte.gates.gate import ExitGates
from dyvte.gates.options import gate_options
from dyvte.gates.states import PAPER_STATES
from dyvte.gates.store import MEASURED, StateStore
from dyvte.gates.supervision import Supervision, labels_of
from dyvte.gates.training import GateTrainer, SupervisedGates
from llava.train.arguments import TrainingArguments, _flag
from llava.train.saving import newest_checkpoint

logger = logging.getLogger(__name__)


@dataclass
class FitArguments:
    """Which store, and the shape of the gates."""

    store: str = _flag("", "Folder that dyvte.gates.store_states wrote.")
    states: list[str] = field(
        default_factory=lambda: list(PAPER_STATES), metadata={"help": "What the gates look at."}
    )
    gate_kind: str = _flag("full", "full (the paper's), low_rank, shared, or small (shared, 64 wide).")
    width: int | None = _flag(None, "Hidden units of a gate (2048; small: 64).")
    rank: int | None = _flag(None, "Of the first matrix of low_rank gates.")
    gated_layers: list[int] | None = _flag(None, "Zero-based layers that have a gate; all by default.")
    gain: float = _flag(1.0, "Of fresh weights; below the paper's 1 where states are large.")
    visual_gates: str | None = _flag(None, "Folder of gates to start from, instead of fresh ones.")
    gate_dtype: str = _flag("float32", "Float type of the finished gates' file: float32 or float16.")


class StoredGates(SupervisedGates):
    """Gates supervised by a store."""

    def __init__(self, gates: ExitGates, alpha: float = 1.03) -> None:
        super().__init__(gates, alpha)
        self.config = SimpleNamespace(use_cache=False)  # the Trainer looks for one

    def supervision(
        self,
        layers: list[int] | None,
        *,
        counted: Tensor,
        states: Tensor | None = None,
        agreement: Tensor | None = None,
        loss_with_exit: Tensor | None = None,
        loss_without_exit: Tensor | None = None,
    ) -> Supervision:
        """What :func:`collate` read, for these layers."""
        chosen = list(range(self.gates.num_layers)) if layers is None else layers
        if states is None or agreement is None or loss_with_exit is None or loss_without_exit is None:
            none = torch.zeros(len(chosen), 0)
            return Supervision(tuple(chosen), (), none, none.long(), none, none, none[0])
        labels = labels_of(agreement, loss_with_exit, loss_without_exit, self.alpha)
        return Supervision(
            layers=tuple(chosen),
            samples=tuple(range(len(states))),
            states=states[:, chosen].transpose(0, 1),
            labels=labels[:, chosen].T,
            agreement=agreement[:, chosen].T,
            loss_with_exit=loss_with_exit[:, chosen].T,
            loss_without_exit=loss_without_exit,
        )


def collate(entries: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Entries of a :class:`StateStore` -> ``counted`` (B,), and of those with states ``states`` (n, L, K * D) etc."""
    batch = {"counted": torch.tensor([entry["counted"] for entry in entries])}
    found = [entry for entry in entries if "states" in entry]
    if found:
        names = ("states", *(name for name in MEASURED if not name.endswith("tokens")))
        batch |= {name: torch.stack([entry[name] for entry in found]) for name in names}
    return batch


def fresh_gates(store: StateStore, options: FitArguments) -> ExitGates:
    """Gates of the shape that the arguments ask for, or those to start from.

    Raises:
        ValueError: they do not fit the store, or each other.
    """
    if options.visual_gates is not None:
        gates = ExitGates.from_pretrained(options.visual_gates, dtype=torch.float32)
        gates.check(store.num_layers, store.hidden_size)
        if gates.states != store.states:
            raise ValueError(
                f"{options.visual_gates} holds gates that look at {', '.join(gates.states)}, not at "
                f"{', '.join(store.states)}: pass --states as they are"
            )
        return gates
    return ExitGates(store.num_layers, store.hidden_size, **gate_options(options))


def fit(options: FitArguments, training_args: TrainingArguments) -> ExitGates:
    """Fit gates and write them to the output folder.

    Raises:
        FileNotFoundError, ValueError: the store or the gates cannot be used.
    """
    if options.gate_dtype not in ("float32", "float16"):
        raise ValueError(f"--gate_dtype must be float32 or float16, got {options.gate_dtype!r}")
    store = StateStore(options.store, options.states)
    set_seed(training_args.seed)  # as in direct training
    gates = fresh_gates(store, options)
    model = StoredGates(gates, training_args.gate_alpha)
    trainer = GateTrainer(model=model, args=training_args, train_dataset=store, data_collator=collate)
    output = str(training_args.output_dir)
    checkpoint = training_args.resume_from_checkpoint or newest_checkpoint(output)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()
    trainer.save_model()
    if options.gate_dtype == "float16" and training_args.should_save:
        gates.half().save_pretrained(output)
    return gates


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and fit."""
    groups: Any = (FitArguments, TrainingArguments)
    parser = HfArgumentParser(groups, prog="python -m dyvte.gates.fit")
    options, training_args = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    level = logging.INFO if training_args.process_index == 0 else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
    if not options.store:
        raise ValueError("--store is missing: name a folder that dyvte.gates.store_states wrote")
    fit(options, training_args)


if __name__ == "__main__":
    main()
