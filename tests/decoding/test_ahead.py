"""Launching the next layer before a gate is read changes nothing but the FLOPs that are spent."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dyvte import ExitGates, LearnedExit, attach
from dyvte.cost.flops import layer_flops
from tests.conftest import LAYERS, MIXED, Prompts


@torch.no_grad()
@pytest.mark.parametrize("states", [None, ("cross", "last_text")], ids=["text", "attention"])
def test_looking_ahead_gives_the_same(hf_llava, gates, states):
    if states:
        torch.manual_seed(1)
        gates = ExitGates(LAYERS, 64, width=8, states=states)
    policy, runs, prompts = LearnedExit(gates), [], Prompts(*MIXED)
    for ahead in (False, True):
        with attach(hf_llava, replace(policy, ahead=ahead)) as handle:
            out = hf_llava(**prompts.hf(), use_cache=True)
            cache, trace = out.past_key_values, handle.traces[0]
            held = [layer.segment(s) for layer in cache.layers for s in range(len(prompts))]
            lengths = cache.kv_lengths
            # a second image, after a cache of the first: what is taken back stands behind what stays
            more = Prompts(*[[[5], "image", [6, 7]]] * len(prompts)).hf()
            mask = torch.cat([prompts.hf()["attention_mask"], more["attention_mask"]], 1)
            later = hf_llava(**{**more, "attention_mask": mask}, past_key_values=cache)
            step = hf_llava(input_ids=torch.full((len(prompts), 1), 9), past_key_values=cache)
        runs.append((out.logits, held, lengths, trace, handle.traces[1], later.logits, step.logits))
    (plain, held, lengths, trace, second, *rest), (*ours, trace_ahead, second_ahead, later, step) = runs
    assert torch.equal(ours[0], plain) and ours[2] == lengths
    assert all(
        torch.equal(a, b) for pair in zip(ours[1], held, strict=True) for a, b in zip(*pair, strict=True)
    )
    assert torch.equal(later, rest[0]) and torch.equal(step, rest[1])
    for one, other in ((trace, trace_ahead), (second, second_ahead)):
        exits = {layer for layer in one.exit_layers if layer is not None}
        assert exits and other.exit_layers == one.exit_layers
        assert torch.equal(other.tokens_per_layer, one.tokens_per_layer)
        assert torch.equal(other.exit_probabilities.nan_to_num(), one.exit_probabilities.nan_to_num())
        # after each exit but one at the last layer, the next layer had run for what was there before
        expected = one.gate_flops
        for layer in exits - {LAYERS - 1}:
            before = one.tokens_per_layer[layer].tolist()
            config = hf_llava.config.text_config
            expected[layer + 1] += torch.tensor([layer_flops(config, tokens) for tokens in before])
        assert torch.equal(other.gate_flops, expected)
