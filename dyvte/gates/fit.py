"""Fit gates to a store of states, without the model: what ``llava.train.train --tune_visual_gates`` does with it.

    python -m dyvte.gates.fit --store STORE --states mean_text last_text --output_dir GATES \
        --num_train_epochs 1 --per_device_train_batch_size 16 --learning_rate 4e-5 --lr_scheduler_type cosine

Flags are transformers' and those of gate training (``--gate_alpha``, ``--gate_supervision``,
``--group_by_modality_length``, ``--seed``, ...). With the same flags, gates start equal and batches come in the same
order as in direct training, so the results are equal up to rounding. A run resumes from the newest checkpoint in its
output folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import HfArgumentParser, set_seed

from dyvte.cli import one_line_errors, words_of
from dyvte.gates.gate import ExitGates
from dyvte.gates.identity import RunIdentity, settings_of, weights_digest
from dyvte.gates.options import GateOptions, TrainingArguments, flag
from dyvte.gates.store import MEASURED, StateStore
from dyvte.gates.supervision import Supervision, labels_of
from dyvte.gates.trainer import log_to_stderr, only_run
from dyvte.gates.training import GateTrainer, SupervisedGates, find_gates

PROG = "python -m dyvte.gates.fit"


@dataclass
class FitArguments(GateOptions):
    """Which store, and which gates."""

    store: str = flag("", "Folder that dyvte.gates.store_states wrote.")
    visual_gates: str | None = flag(None, "Gates to start from, folder or hub name, instead of fresh ones.")
    gate_dtype: str = flag("float32", "Float type of the finished gates' file: float32 or float16.")


class StoredGates(SupervisedGates):
    """Gates supervised by a store; batches come from :func:`collate`."""

    def __init__(self, gates: ExitGates, alpha: float = 1.03) -> None:
        super().__init__(gates, alpha, SimpleNamespace(use_cache=False))

    def supervise(self, batch: dict[str, Tensor], layers: list[int] | None) -> Supervision:
        """The supervision that the store holds for a batch, for these layers or all."""
        chosen = list(range(self.gates.num_layers)) if layers is None else layers
        samples = tuple(batch["has_states"].nonzero().flatten().tolist())
        if not samples:
            none = torch.zeros(len(chosen), 0)
            return Supervision(tuple(chosen), (), none, none.long(), none, none, none[0])
        with_exit, without = batch["loss_with_exit"], batch["loss_without_exit"]
        labels = labels_of(batch["agreement"], with_exit, without, self.alpha)
        return Supervision(
            layers=tuple(chosen),
            samples=samples,
            states=batch["states"][:, chosen].transpose(0, 1),
            labels=labels[:, chosen].T,
            agreement=batch["agreement"][:, chosen].T,
            loss_with_exit=with_exit[:, chosen].T,
            loss_without_exit=without,
        )


def collate(entries: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Entries of a :class:`StateStore` -> ``has_states`` (B,) bool, and of those ``states`` (n, L, K * D) etc."""
    batch = {"has_states": torch.tensor([bool(entry) for entry in entries])}
    found = [entry for entry in entries if entry]
    if found:
        names = ("states", *(name for name in MEASURED if not name.endswith("tokens")))
        batch |= {name: torch.stack([entry[name] for entry in found]) for name in names}
    return batch


def starting_gates(store: StateStore, options: FitArguments) -> ExitGates:
    """Fresh gates of the shape that the arguments ask for, or those to start from, marked as fitted to the store.

    Raises:
        ValueError: they do not fit the store, or each other.
    """
    origin = store.manifest.origin
    if options.visual_gates is None:
        gates = options.fresh_gates(store.num_layers, store.hidden_size)
    else:
        gates = find_gates(store.num_layers, store.hidden_size, options.visual_gates)
        if gates.states != store.states:
            raise ValueError(
                f"{options.visual_gates} holds gates that look at {', '.join(gates.states)}, not at "
                f"{', '.join(store.states)}: pass --states as they are"
            )
        gates.check_base(origin.base_sha256, origin.base_model)
    gates.origin = origin
    return gates


def fit(options: FitArguments, training_args: TrainingArguments) -> ExitGates:
    """Fit gates and write them to the output folder.

    Raises:
        FileNotFoundError, ValueError: the store or the gates cannot be used.
    """
    if options.gate_dtype not in ("float32", "float16"):
        raise ValueError(f"--gate_dtype must be float32 or float16, got {options.gate_dtype!r}")
    store = StateStore(options.store, options.states)
    set_seed(training_args.seed)  # as in direct training
    gates = starting_gates(store, options)
    model = StoredGates(gates, training_args.gate_alpha)
    trainer = GateTrainer(model=model, args=training_args, train_dataset=store, data_collator=collate)
    settings = settings_of(options, training_args, global_batch=training_args.global_batch)
    manifest = store.manifest
    settings |= {"prompts": manifest.settings, "dtype": manifest.dtype}
    trainer.identity = RunIdentity(manifest.model, manifest.data, weights_digest(gates), settings)
    with only_run(training_args):
        trainer.train_to_the_end()
        if options.gate_dtype == "float16" and training_args.should_save:
            gates.half().save_pretrained(str(training_args.output_dir))
    return gates


def main(argv: Sequence[str] | None = None) -> None:
    """Parse a command line and fit gates.

    Raises:
        FileNotFoundError, ValueError: see :func:`fit`, and when a flag is wrong or missing.
    """
    groups: Any = (FitArguments, TrainingArguments)
    parser = HfArgumentParser(groups, prog=PROG)
    options, training_args = parser.parse_args_into_dataclasses(words_of(argv), look_for_args_file=False)
    log_to_stderr(training_args)
    if not options.store:
        raise ValueError("--store is missing: name a folder that dyvte.gates.store_states wrote")
    fit(options, training_args)


if __name__ == "__main__":
    with one_line_errors(PROG):
        main()
