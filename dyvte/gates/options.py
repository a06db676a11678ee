"""Command-line flags of gates, for ``HfArgumentParser``: the shape of fresh gates, and how gates are trained.

The parser accepts each flag with underscores and with hyphens (``--gate_kind``, ``--gate-kind``).

Called from :mod:`dyvte.gates`, :mod:`dyvte.study`, :mod:`init_weight` and :mod:`llava.train`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from dyvte.gates.gate import KINDS, ExitGates
from dyvte.gates.states import ATTENTION_STATES, PAPER_STATES, STATES

logger = logging.getLogger(__name__)

SMALL, SMALL_KIND, SMALL_WIDTH = "small", "shared", 64
"""What ``small`` stands for: a shared gate of this width."""
PAPER_WIDTH = 2048


def flag(default: Any, text: str) -> Any:
    """A dataclass field with a help text."""
    return field(default=default, metadata={"help": text})


@dataclass
class GateOptions:
    """The shape of fresh gates; the defaults are the paper's."""

    states: list[str] = field(
        default_factory=lambda: list(PAPER_STATES),
        metadata={"help": f"What gates look at, some of {', '.join(STATES + ATTENTION_STATES)}."},
    )
    gate_kind: str = flag(
        "full",
        f"One of {', '.join((*KINDS, SMALL))}; full is the paper's, {SMALL} is {SMALL_KIND}, {SMALL_WIDTH} wide.",
    )
    width: int | None = flag(
        None, f"Hidden units of a gate; {PAPER_WIDTH} by default, {SMALL_WIDTH} for small."
    )
    rank: int | None = flag(None, "Rank of the first matrix of low_rank gates.")
    gated_layers: list[int] | None = flag(None, "Zero-based layers that have a gate; all by default.")
    gain: float = flag(1.0, "Scale of fresh weights; use less than the paper's 1 where states are large.")

    def fresh_gates(self, num_layers: int, hidden_size: int) -> ExitGates:
        """New gates of this shape, from torch's random state.

        Raises:
            ValueError: the options do not fit each other or the model.
        """
        small = self.gate_kind == SMALL
        return ExitGates(
            num_layers,
            hidden_size,
            self.width or (SMALL_WIDTH if small else PAPER_WIDTH),
            self.states,
            kind=SMALL_KIND if small else self.gate_kind,
            rank=self.rank,
            gated_layers=self.gated_layers,
            gain=self.gain,
        )


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' training arguments, those of gate training, and flags that only older transformers know."""

    optim: str = flag("adamw_torch", "Optimizer.")
    remove_unused_columns: bool = flag(False, "Keep as it is: the collator needs every field.")
    group_by_modality_length: bool = flag(False, "Group samples by modality and length.")
    gate_supervision: str = flag("all", "all: labels of every layer in one pass; random: one layer a step.")
    gate_alpha: float = flag(1.03, "How much larger the answer loss may be after an exit.")

    # Flags of older transformers, mapped to today's names or ignored with a warning.
    evaluation_strategy: str | None = flag(None, "Older name of --eval_strategy.")
    warmup_ratio: float | None = flag(None, "Share of steps spent warming up (now: --warmup_steps).")
    no_cuda: bool = flag(False, "Older name of --use_cpu.")
    group_by_length: bool = flag(False, "Older name of --train_sampling_strategy group_by_length.")
    logging_dir: str | None = flag(None, "Ignored: set TENSORBOARD_LOGGING_DIR instead.")
    overwrite_output_dir: bool = flag(False, "Ignored: a run resumes from its newest checkpoint.")
    save_safetensors: bool = flag(True, "Ignored: weights are saved as safetensors.")
    include_tokens_per_second: bool = flag(False, "Ignored.")
    fp16_opt_level: str | None = flag(None, "Ignored.")
    half_precision_backend: str | None = flag(None, "Ignored.")

    def __post_init__(self) -> None:
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.warmup_ratio is not None:
            if not 0 <= self.warmup_ratio < 1:
                raise ValueError(f"--warmup_ratio must lie in [0, 1), got {self.warmup_ratio}")
            self.warmup_steps = self.warmup_steps or self.warmup_ratio
        if self.no_cuda:
            self.use_cpu = True
        if (self.bf16 or self.fp16) and not self.use_cpu and not torch.cuda.is_available():
            raise ValueError(
                f"--{'bf16' if self.bf16 else 'fp16'} True needs a GPU, and this machine has none: leave it out "
                "(the scripts: BF16=False), or train in it on the CPU with --use_cpu True"
            )
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        if self.tf32 and not torch.cuda.is_available():
            logger.warning("--tf32 needs a GPU; it is ignored on this machine")
            self.tf32 = None
        for name in ("logging_dir", "overwrite_output_dir", "fp16_opt_level", "half_precision_backend"):
            if getattr(self, name):
                logger.warning("--%s is ignored: this version of transformers has no such flag", name)
        if self.gate_supervision not in ("all", "random"):
            raise ValueError(f"--gate_supervision must be 'all' or 'random', got {self.gate_supervision!r}")
        if not 0 < self.gate_alpha < math.inf:
            raise ValueError(f"--gate_alpha must be positive, got {self.gate_alpha}")
        super().__post_init__()

    @property
    def global_batch(self) -> int:
        """Samples per step, over all processes and accumulated batches."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size
