"""Assisted and prompt-lookup decoding with a policy attached: the tokens of greedy decoding, whatever is drafted."""

from __future__ import annotations

import pytest
import torch

from dyvte import FixedExit, LearnedExit, NoExit, attach
from tests.conftest import MIXED, Prompts, tiny_hf_llava

GREEDY = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def assistants():
    """A model of other weights, so that some of its drafts are refused, and one whose drafts are all taken."""
    return {"other": tiny_hf_llava(seed=5), "same": tiny_hf_llava()}


@pytest.mark.parametrize("prompt", [0, 1, 3, 7])
@pytest.mark.parametrize("kind", ["lookup", "other", "same"])
def test_drafts_change_no_token(hf_llava, gates, assistants, prompt, kind):
    """Those of greedy decoding with the same exit.

    The first draft comes with the prompt, in one forward pass: gates look at its tokens as well, and may decide
    otherwise than without it.
    """
    inputs = Prompts(MIXED[prompt]).hf()
    drafting = {"prompt_lookup_num_tokens": 3} if kind == "lookup" else {"assistant_model": assistants[kind]}
    with attach(hf_llava, NoExit()) as handle, torch.inference_mode():
        for policy in (NoExit(), FixedExit(1), LearnedExit(gates, threshold=0.5)):
            handle.policy = policy
            with handle.collect() as traces:
                drafted = hf_llava.generate(**inputs, **GREEDY, **drafting)
            (taken,) = traces[0].exit_layers
            handle.policy = NoExit() if taken is None else FixedExit(taken)
            assert drafted.tolist() == hf_llava.generate(**inputs, **GREEDY).tolist()


@pytest.mark.parametrize("prompt", [0, 1, 3])
def test_lookup_in_llavas_own_class(llava, prompt):
    inputs = Prompts(MIXED[prompt]).ours()
    with attach(llava, FixedExit(1)), torch.inference_mode():
        expected = llava.generate(**inputs, **GREEDY)
        drafted = llava.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=3)
    assert drafted.tolist() == expected.tolist()
