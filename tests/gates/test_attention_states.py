"""Attention as a gate's input equals what full eager attention says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dyvte import ExitGates, LearnedExit, attach
from dyvte.decoding.policy import Policy
from dyvte.gates.states import ATTENTION_STATES, gather_states
from dyvte.gates.supervision import supervise
from tests.conftest import LAYERS, PATCHES

HIDDEN = 64


class Keeps(Policy):
    """A policy that keeps the attention states of every layer."""

    def __init__(self):
        self.learned = LearnedExit(ExitGates(LAYERS, HIDDEN, 4, ATTENTION_STATES), threshold=1.0)
        self.states, self.sequences = [], ()

    def observes(self, layer, layout):
        return self.learned.observes(layer, layout)

    def observe(self, layer, inputs, trace):
        self.learned.observe(layer, inputs, trace)

    def edit(self, layer, row, trace):
        self.states.append(gather_states(row, ATTENTION_STATES, trace.scratch.pop(self.learned)))
        self.sequences = row.layout.may_exit
        return row


def stretched(values: np.ndarray) -> np.ndarray:
    """Linear interpolation to the hidden size, cell centres on cell centres."""
    centres = (np.arange(HIDDEN) + 0.5) * len(values) / HIDDEN - 0.5
    return np.interp(centres, np.arange(len(values)), values)


def columns(prompt) -> tuple[list[int], list[int]]:
    """Columns of the visual tokens, and of the text after the last of them."""
    kinds = [
        kind for piece in prompt for kind in (["v"] * PATCHES if piece == "image" else ["t"] * len(piece))
    ]
    visual = [at for at, kind in enumerate(kinds) if kind == "v"]
    return visual, list(range(visual[-1] + 1, len(kinds)))


@torch.no_grad()
def test_states_are_those_of_full_attention(hf_llava, prompts):
    """Packed in a batch, with several images and grouped queries, against one prompt at a time with eager weights."""
    with attach(hf_llava, keeps := Keeps()):
        hf_llava(**prompts.hf())
    chosen = hf_llava.config._attn_implementation
    hf_llava.set_attn_implementation("eager")
    try:
        for row, sample in enumerate(keeps.sequences):
            weights = hf_llava(**prompts[sample].hf(), output_attentions=True).attentions
            visual, text = columns(prompts.prompts[sample])
            for layer in range(LAYERS):
                mean = weights[layer][0].double().mean(0).numpy()
                expected = [
                    stretched(mean[np.ix_(queries, keys)].mean(0))
                    for queries, keys in ((visual, visual), (text, visual), (text, text))
                ]
                torch.testing.assert_close(
                    keeps.states[layer][row].double(),
                    torch.tensor(np.concatenate(expected)),
                    rtol=0,
                    atol=1e-5,
                )
    finally:
        hf_llava.set_attn_implementation(chosen)
    assert len(keeps.sequences) == 7


@torch.no_grad()
def test_gates_that_read_attention_decide_by_it(hf_llava, prompts):
    """Exit exactly where the gate's own formula, on the states above, says so; labels come with the same states."""
    torch.manual_seed(1)
    gates = ExitGates(LAYERS, HIDDEN, 8, ("cross", "last_text"))
    for parameter in gates.parameters():
        parameter.mul_(5)
    with attach(hf_llava, LearnedExit(gates, threshold=0.5)) as handle:
        hf_llava(**prompts.hf())
    with attach(hf_llava, keeps := Keeps()):
        hf_llava(**prompts.hf())
    probabilities = handle.traces[-1].exit_probabilities
    first = probabilities[0, list(keeps.sequences)]
    assert not first.isnan().any()
    inputs = hf_llava.model.language_model.embed_tokens(torch.tensor([[1, 5, 6, 7, 8, 9]]))
    visual = torch.tensor([[False, True, True, False, False, False]])
    labels = torch.tensor([[-100, -100, -100, -100, 8, 9]])
    both = supervise(hf_llava, inputs, labels, visual, states=("cross", "last_text")).states
    alone = supervise(hf_llava, inputs, labels, visual, states=("last_text",)).states
    assert torch.equal(both[:, :, HIDDEN:], alone)
    short = supervise(hf_llava, inputs[:, :5], labels[:, :5], visual[:, :5], states=("cross",)).states
    torch.testing.assert_close(both[:, :, :HIDDEN], short)  # answers have no part in it
    again = gates(0, torch.cat([keeps.states[0][:, HIDDEN : 2 * HIDDEN], _last_text(hf_llava, prompts)], -1))
    torch.testing.assert_close(first, again.softmax(-1)[:, 1], rtol=1e-4, atol=1e-5)


def _last_text(model, prompts) -> torch.Tensor:
    """(n, D) the last token's state after layer 0 of each prompt with an image, from the plain model."""
    states = [
        model(**prompts[i].hf(), output_hidden_states=True).hidden_states[1][0, -1]
        for i, prompt in enumerate(prompts.prompts)
        if "image" in prompt
    ]
    return torch.stack(states)


def test_attention_states_need_attention(hf_llava):
    with pytest.raises(ValueError, match="states must be"):
        ExitGates(LAYERS, HIDDEN, 4, ("image_cross",))
