"""A new method in twenty lines: keep the visual tokens whose states are largest.

A method is a ``Policy``: it overrides the hooks that it needs. The loop, the batches, the cache and the accounting of
FLOPs stay as they are.

    python examples/03_new_method.py
"""

from __future__ import annotations

from dataclasses import dataclass

from tiny_llava import tiny_llava, two_prompts

from dyvte import attach
from dyvte.decoding.packed import PackedRow
from dyvte.decoding.policy import Policy
from dyvte.decoding.trace import ExitTrace
from dyvte.reduction.scores import keep_highest, kept_count


@dataclass(frozen=True)
class LargestStates(Policy):
    """After layer ``k``, keep the share ``keep`` of each sample's visual tokens with the largest states."""

    k: int = 1
    keep: float = 0.5

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Refuse a decoder without such a layer."""
        if not 0 <= self.k < num_layers:
            raise ValueError(f"k must be one of 0..{num_layers - 1}, got {self.k}")

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """``row.hidden`` is (1, T, D): the tokens of all samples, one after another, without padding."""
        if layer != self.k:
            return row
        norms = row.hidden[0].norm(dim=-1)
        layout = row.layout
        counts = {sample: kept_count(layout.visual[sample], self.keep) for sample in layout.may_exit}
        return keep_highest(row, norms, counts, layer, trace)


if __name__ == "__main__":
    model = tiny_llava()
    with attach(model, LargestStates(k=1, keep=0.5)) as handle:
        model.generate(**two_prompts(), max_new_tokens=4, do_sample=False)
        print("tokens per layer and sample:", handle.traces[-1].tokens_per_layer.tolist())
