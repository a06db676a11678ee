"""Labels for the gates: does the model give the same answer when it loses the image after a layer?

The label of layer ``l`` for a sample with a teacher-forced answer is 1 when, at every answer position, the argmax
with exit at ``l`` equals the argmax without exit, and the mean answer cross-entropy with exit is at most ``alpha``
times the one without (paper, Eq. 6 and Section 3.3). The paper says *below*; with equality, an exit that changes no
logit keeps its label of 1 where both cross-entropies are zero.

One forward pass gives the labels of all layers: after each layer the text tokens of every sample are forked into a
copy that continues without the image. Random-layer supervision, as in the paper, forks after one layer.

Shapes: B samples, S columns, n samples with states, L supervised layers, K states, D hidden size.

Called from most of the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dyvte.decoding.attention.interface import AttentionInputs
from dyvte.decoding.loop import run_layers
from dyvte.decoding.packed import Layout, PackedRow, fork, pack
from dyvte.decoding.policy import Policy
from dyvte.decoding.trace import ExitTrace
from dyvte.families.base import adapter_for, stack_of
from dyvte.gates.attention_states import attention_states
from dyvte.gates.gate import ExitGates
from dyvte.gates.states import PAPER_STATES, check_states, gather_states, reads_attention

IGNORE_INDEX = -100
LOGIT_ROWS = 2048
"""Answer positions per chunk of logits; bounds memory at ``LOGIT_ROWS`` x vocabulary."""


@dataclass(frozen=True)
class Embedded:
    """A batch of prompts with their teacher-forced answers, as a decoder takes it.

    Attributes:
        inputs_embeds: (B, S, D) embeddings as they enter the first layer, visual tokens in their places.
        labels: (B, S) long, the token ids at answer positions and -100 elsewhere.
        visual_mask: (B, S) bool, true on visual tokens.
        attention_mask: (B, S), nonzero on real tokens.
        position_ids, blocks, extras: see :func:`~dyvte.decoding.packed.pack`; None where there are none.
    """

    inputs_embeds: Tensor
    labels: Tensor
    visual_mask: Tensor
    attention_mask: Tensor
    position_ids: Tensor | None = None
    blocks: Tensor | None = None
    extras: Any = None


@dataclass(frozen=True)
class Supervision:
    """States and labels of a batch.

    Attributes:
        layers: the supervised layers.
        samples: the samples of the batch that have states and an answer; gates learn nothing from the others.
        states: (L, n, K * D), in the model's dtype.
        labels: (L, n) long, 1 where an exit keeps the answer.
        agreement: (L, n) float, share of answer positions with the same argmax.
        loss_with_exit: (L, n) float64, mean answer cross-entropy with exit.
        loss_without_exit: (n,) float64, the same without exit.
    """

    layers: tuple[int, ...]
    samples: tuple[int, ...]
    states: Tensor
    labels: Tensor
    agreement: Tensor
    loss_with_exit: Tensor
    loss_without_exit: Tensor


class _ForkForLabels(Policy):
    """Policy that keeps the states after each supervised layer and forks the samples without their image."""

    def __init__(self, layers: Sequence[int], states: Sequence[str], hidden_size: int):
        self.layers, self.names, self.hidden_size = set(layers), states, hidden_size
        self.states: list[Tensor] = []

    def edit(self, layer: int, row: PackedRow, trace: ExitTrace) -> PackedRow:
        """The row with one more text-only copy of each sample."""
        if layer not in self.layers:
            return row
        self.states.append(gather_states(row, self.names, trace.scratch.pop("attention", None)))
        return fork(row, layer)

    def observes(self, layer: int, layout: Layout) -> bool:
        """The supervised layers, where gates read attention."""
        return layer in self.layers and reads_attention(self.names)

    def observe(self, layer: int, inputs: AttentionInputs, trace: ExitTrace) -> None:
        """Keep what the states need of the layer's attention."""
        trace.scratch["attention"] = attention_states(inputs, self.hidden_size)


@torch.no_grad()
def supervise(
    model: nn.Module,
    inputs_embeds: Tensor,
    labels: Tensor,
    visual_mask: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    blocks: Tensor | None = None,
    extras: Any = None,
    *,
    layers: Sequence[int] | None = None,
    states: Sequence[str] = PAPER_STATES,
    alpha: float = 1.03,
) -> Supervision:
    """Run the frozen model once and label its layers.

    Args:
        model: a model that has an adapter, in evaluation mode.
        inputs_embeds, labels, visual_mask, attention_mask, position_ids, blocks, extras: see :class:`Embedded`.
        layers: the layers to label, in any order; all by default, one for random-layer supervision.
        states: which states to return.
        alpha: allowed ratio of the cross-entropies.

    Raises:
        ValueError: on an unknown state or layer, or when alpha is not positive.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    decoder: Any = adapter_for(model).decoder(model)
    num_layers = len(decoder.layers)
    layers = tuple(range(num_layers)) if layers is None else tuple(sorted(set(layers)))
    if not layers or not set(layers) <= set(range(num_layers)):
        raise ValueError(f"layers must be some of 0..{num_layers - 1}, got {layers}")
    policy = _ForkForLabels(layers, check_states(states), decoder.config.hidden_size)

    answered = labels != IGNORE_INDEX
    from_first_answer = answered.long().cumsum(1) > 0
    row = pack(inputs_embeds, attention_mask, position_ids, visual_mask, from_first_answer, blocks, extras)
    targets = _next_labels(row, labels)
    with_states, has_answer = row.layout.may_exit, answered.any(1).tolist()
    position = [i for i, sample in enumerate(with_states) if has_answer[sample]]
    samples = tuple(with_states[i] for i in position)

    row = run_layers(stack_of(model), row, policy=policy, trace=ExitTrace(num_layers, row.layout))
    losses, choices, counts = _answers(row, targets, model)
    # sequences: the samples' own first, then one block of copies per layer, each in the order of the samples
    batch = len(labels)
    layout = row.layout
    copies = {(layout.forked_at[g], layout.samples[g]): g for g in range(batch, len(layout.lengths))}
    copy_ids = torch.tensor([[copies[layer, s] for s in samples] for layer in layers], dtype=torch.long)
    copy_ids = copy_ids.view(len(layers), len(samples)).to(losses.device)
    own, answering = (layout.to_device(np.array(rows, np.int64)) for rows in (samples, position))

    without, with_exit = losses[own], losses[copy_ids]
    agreement = _agreement(choices, counts, own, copy_ids)
    return Supervision(
        layers=layers,
        samples=samples,
        states=torch.stack([states.to(losses.device) for states in policy.states]).index_select(1, answering),
        labels=labels_of(agreement.T, with_exit.T, without, alpha).T,
        agreement=agreement,
        loss_with_exit=with_exit,
        loss_without_exit=without,
    )


def labels_of(agreement: Tensor, with_exit: Tensor, without: Tensor, alpha: float) -> Tensor:
    """Labels (n, L) long, from agreement (n, L) and mean cross-entropies with (n, L) and without exit (n,)."""
    return ((agreement == 1) & (with_exit <= alpha * without[:, None])).long()


def _next_labels(row: PackedRow, labels: Tensor) -> Tensor:
    """(B * S,) by slot: the label that each token has to predict, -100 where there is none."""
    layout = row.layout
    by_token = labels.flatten()[layout.slots]
    following = torch.cat([by_token[1:], by_token.new_full((1,), IGNORE_INDEX)])
    following[layout.last_index] = IGNORE_INDEX
    return torch.full_like(labels.flatten(), IGNORE_INDEX).index_copy(0, layout.slots, following)


def _answers(row: PackedRow, targets: Tensor, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy (G,) float64, argmax at all answer positions (A,), and answer positions per sequence (G,).

    Cross-entropies are computed in float64, because float32 rounds those of a confident model to zero.
    """
    layout, device = row.layout, row.hidden.device
    target = targets.to(device)[layout.slots]
    at = (target != IGNORE_INDEX).nonzero().flatten()
    losses, choices = [], []
    head, finish = cast(Any, model).get_output_embeddings(), adapter_for(model).logits
    for chunk in at.split(LOGIT_ROWS):
        logits = finish(model, head(row.hidden[0, chunk]))
        choices.append(logits.argmax(-1).to(device))
        wanted = target[chunk].to(logits.device)  # the head may be on another device than the last layer
        losses.append(nn.functional.cross_entropy(logits.double(), wanted, reduction="none").to(device))
    groups = len(layout.lengths)
    sequence = layout.owner_ids[at]
    counts = torch.bincount(sequence, minlength=groups)
    total = torch.zeros(groups, dtype=torch.float64, device=device)
    if losses:
        total.index_add_(0, sequence, torch.cat(losses))
    chosen = torch.cat(choices) if choices else at
    return total / counts, chosen, counts


def _agreement(choices: Tensor, counts: Tensor, own: Tensor, copies: Tensor) -> Tensor:
    """(L, n) share of answer positions at which a copy chooses the token that the sample itself chooses."""
    starts = counts.cumsum(0) - counts
    out = torch.zeros(copies.shape, dtype=torch.float64, device=choices.device)
    for i, sequence in enumerate(own.tolist()):
        count = int(counts[sequence])
        within = torch.arange(count, device=choices.device)
        reference = choices[starts[sequence] + within]
        same = choices[starts[copies[:, i]][:, None] + within] == reference
        out[:, i] = same.double().mean(1)
    return out


def gate_loss(gates: ExitGates, supervision: Supervision) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the gates, summed over the supervised layers and averaged over samples.

    The sum over layers gives each gate the gradient that it gets when its layer alone is drawn. Without any sample
    the loss is 0 and still connected to the gates.

    Returns:
        The loss, and (3, num_layers) long, by layer: labels, labels that are 1, decisions equal to their labels.
    """
    device = next(gates.parameters()).device
    counts = torch.zeros(3, gates.num_layers, dtype=torch.long, device=device)
    # every gate takes part in every step, because data-parallel reducers wait for all parameters
    loss = sum((parameter.sum() for parameter in gates.parameters()), torch.zeros((), device=device)) * 0.0
    if not supervision.samples:
        return loss, counts
    for i, layer in enumerate(supervision.layers):
        if not gates.has_gate(layer):
            continue
        labels = supervision.labels[i].to(device)
        logits = gates(layer, supervision.states[i].to(device)).float()
        loss = loss + nn.functional.cross_entropy(logits, labels)
        correct = (logits[:, 1] > logits[:, 0]).long() == labels
        counts[:, layer] = torch.stack([torch.ones_like(labels), labels, correct]).sum(1)
    return loss, counts
