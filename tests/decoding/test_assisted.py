"""Assisted and prompt-lookup decoding with a policy attached: tokens and exits of greedy decoding."""

from __future__ import annotations

import pytest
import torch
import transformers

from dyvte import FixedExit, LearnedExit, NoExit, attach
from tests.conftest import MIXED, Prompts, tiny_hf_llava

OLD = transformers.__version__.startswith("5.17.")
GREEDY = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def assistants():
    """A model of other weights, so that some of its drafts are refused, and one whose drafts are all taken."""
    return {"other": tiny_hf_llava(seed=5), "same": tiny_hf_llava()}


@pytest.mark.parametrize("prompt", [0, 1, 3, 7])
@pytest.mark.parametrize("kind", ["lookup", "other", "same"])
def test_drafts_change_no_token(hf_llava, gates, assistants, prompt, kind):
    """Nor the exit: the first draft comes with the prompt, in one forward pass, and gates do not look at it."""
    inputs = Prompts(MIXED[prompt]).hf()
    drafting = {"prompt_lookup_num_tokens": 3} if kind == "lookup" else {"assistant_model": assistants[kind]}
    with attach(hf_llava, NoExit()) as handle, torch.inference_mode():
        for policy in (NoExit(), FixedExit(1), LearnedExit(gates, threshold=0.5)):
            handle.policy = policy
            expected = hf_llava.generate(**inputs, **GREEDY)
            drafted = hf_llava.generate(**inputs, **GREEDY, **drafting)
            assert drafted.tolist() == expected.tolist()
            plain, assisted = handle.traces  # no token of an answer makes a prefill
            assert assisted.exit_layers == plain.exit_layers
            torch.testing.assert_close(
                assisted.exit_probabilities, plain.exit_probabilities, rtol=1e-5, atol=1e-6, equal_nan=True
            )
            handle.traces.clear()


def test_an_attached_model_may_draft(hf_llava, gates, assistants):
    inputs = Prompts(MIXED[1]).hf()
    with torch.inference_mode():
        expected = assistants["same"].generate(**inputs, **GREEDY)
        with attach(hf_llava, LearnedExit(gates)) as handle:
            drafted = assistants["same"].generate(**inputs, **GREEDY, assistant_model=hf_llava)
        assert handle.traces and drafted.tolist() == expected.tolist()


@pytest.mark.parametrize("prompt", [0, 1, 3])
def test_lookup_in_llavas_own_class(llava, prompt):
    inputs = Prompts(MIXED[prompt]).ours()
    with attach(llava, FixedExit(1)), torch.inference_mode():
        expected = llava.generate(**inputs, **GREEDY)
        if OLD:
            with pytest.raises(ValueError, match="drafting from embeddings .* needs transformers 5.18"):
                llava.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=3)
            return
        drafted = llava.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=3)
    assert drafted.tolist() == expected.tolist()
