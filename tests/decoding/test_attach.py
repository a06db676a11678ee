"""What attaching leaves alone, refuses and gives back, and several threads on one model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dyvte import ExitGates, FixedExit, LearnedExit, NoExit, attach
from dyvte.decoding import attach as attach_file
from dyvte.decoding.attention.interface import packed_layers
from dyvte.decoding.loop import run_layers
from dyvte.decoding.packed import pack
from dyvte.families.base import stack_of
from dyvte.reduction import Combine, FastV
from tests.conftest import LAYERS, MIXED, Prompts


@torch.no_grad()
def test_threads_on_one_attached_model_get_their_own_answers_and_traces(hf_llava, gates):
    """Each of many concurrent prefills equals the one alone, and collects its own trace."""

    def ask(handle, prompts):
        with torch.no_grad(), handle.collect() as traces:
            logits = hf_llava(**prompts.hf()).logits[:, -1]
        (trace,) = traces
        return logits, trace.exit_layers

    prompts = [Prompts(prompt) for prompt in MIXED]
    with attach(hf_llava, LearnedExit(gates)) as handle:
        alone = [ask(handle, one) for one in prompts]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda one: ask(handle, one), prompts * 8))
        assert not handle.traces
    for number, (logits, exits) in enumerate(together):
        torch.testing.assert_close(logits, alone[number % len(prompts)][0])
        assert exits == alone[number % len(prompts)][1]
    assert hf_llava.model.language_model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_the_newest_traces_are_kept(hf_llava, monkeypatch):
    monkeypatch.setattr(attach_file, "TRACES_KEPT", 3)
    with attach(hf_llava, NoExit()) as handle:
        for prompt in MIXED[:5]:
            hf_llava(**Prompts(prompt).hf())
    assert [trace.prompt_tokens for trace in handle.traces] == [[7], [6], [12]]


@torch.no_grad()
def test_detach_gives_back_a_forward_that_a_wrapper_had_set(hf_llava):
    decoder, calls = hf_llava.model.language_model, []
    plain = decoder.forward

    def wrapped(*args, **kwargs):
        calls.append(1)
        return plain(*args, **kwargs)

    decoder.forward = wrapped
    try:
        with attach(hf_llava, NoExit()):
            hf_llava(**Prompts(MIXED[0]).hf())
        assert not calls and decoder.forward is wrapped
        hf_llava(**Prompts(MIXED[0]).hf())
        assert calls
    finally:
        del decoder.forward


@torch.no_grad()
def test_inputs_may_be_given_by_position(hf_llava):
    inputs = Prompts(MIXED[0]).hf()
    with attach(hf_llava, FixedExit(1)) as handle:
        hf_llava.model(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
    assert handle.traces[-1].exit_layers == [1]


@pytest.mark.parametrize("within", [lambda policy: policy, lambda policy: Combine((FastV(), policy))])
def test_gates_move_to_the_devices_of_their_layers(hf_llava, within):
    gates = ExitGates(LAYERS, 64, width=4)
    places = []
    gates.place = places.append
    with attach(hf_llava, NoExit()) as handle:
        handle.policy = within(LearnedExit(gates))
    assert places == [[torch.device("cpu")] * LAYERS]


def test_a_policy_that_does_not_fit_is_refused_when_it_is_put_in(hf_llava):
    with attach(hf_llava, NoExit()) as handle:
        with pytest.raises(ValueError, match="these gates are for a model of 2 layers"):
            handle.policy = LearnedExit(ExitGates(2, 64, width=4))
        assert handle.policy == NoExit()


@torch.no_grad()
@pytest.mark.parametrize("argument", ["softcap", "s_aux", "position_bias", "attention_mask", "dropout"])
def test_arguments_that_would_be_dropped_are_refused(hf_llava, monkeypatch, argument):
    decoder = hf_llava.model.language_model
    for layer in decoder.layers:
        plain = type(layer).forward

        def forward(self, *args, plain=plain, **kwargs):
            return plain(self, *args, **{**kwargs, argument: 0.5})

        monkeypatch.setattr(type(layer), "forward", forward)
        break
    with pytest.raises((ValueError, TypeError), match=argument):
        run_layers(stack_of(hf_llava), pack(torch.randn(1, 3, 64)))


def test_another_attention_implementation_is_refused(hf_llava):
    config = hf_llava.model.language_model.config
    before = config._attn_implementation_internal
    config._attn_implementation_internal = "flex_attention"
    try:
        with (
            pytest.raises(ValueError, match="'flex_attention' cannot run packed rows"),
            packed_layers(config),
        ):
            pass
    finally:
        config._attn_implementation_internal = before
    with pytest.raises(ZeroDivisionError), packed_layers(config):
        raise ZeroDivisionError
    assert config._attn_implementation_internal == before
