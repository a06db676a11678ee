"""On a card: torch's variable-length kernel against SDPA, sequence by sequence."""

from __future__ import annotations

import pytest
import torch

from dyvte import ExitGates, LearnedExit, attach
from dyvte.decoding.attention import sdpa, varlen
from dyvte.decoding.packed import pack
from tests.conftest import LAYERS, MIXED, Prompts, tiny_hf_llava

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def half_precision_kernel():
    if not varlen.torch_varlen_fits(torch.device("cuda"), torch.bfloat16, [64]):
        pytest.skip("torch_varlen needs torch 2.11 and compute capability 8.0")


def layout_of(lengths):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return pack(torch.zeros(len(lengths), max(lengths), 8, device="cuda"), mask.cuda()).layout


@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize("lengths", [[5], [60, 636, 60, 1, 333], [64] * 8])
def test_prefill(lengths, kv_heads):
    torch.manual_seed(0)
    layout, tokens = layout_of(lengths), sum(lengths)
    query = torch.randn(1, 8, tokens, 64, device="cuda", dtype=torch.bfloat16)
    key, value = (torch.randn(1, kv_heads, tokens, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    expected = sdpa.Prefill(sdpa.sdpa, layout)(query, key, value, None, 0.125)
    ours = varlen.Prefill(varlen.TorchVarlen(), layout)(query, key, value, None, 0.125)
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)
    # and in a row that is filled up, whose filler holds NaN
    filled = -(-tokens // 32) * 32
    plan = varlen.Filled(varlen.TorchVarlen(), len(lengths), filled, torch.device("cuda"))
    plan.load(layout)
    rows = [
        torch.cat([part, part.new_full((1, part.shape[1], filled - tokens, 64), torch.nan)], 2)
        for part in (query, key, value)
    ]
    torch.testing.assert_close(plan(*rows, None, 0.125)[:, :tokens], expected, rtol=2e-2, atol=2e-2)


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_chunks_and_steps_of_ragged_caches(kv_heads):
    """A chat: prompts of other lengths with other exits, a second turn of two tokens, single tokens."""
    torch.manual_seed(3)
    model = tiny_hf_llava(kv_heads=kv_heads).to("cuda", torch.bfloat16)
    policy = LearnedExit(ExitGates(LAYERS, 64, width=32), threshold=0.0, first_layer=1)
    inputs = {name: value.to("cuda") for name, value in Prompts(*MIXED).hf().items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    turns = []
    for kernel in ("sdpa", "torch_varlen"):
        with attach(model, policy, None, kernel=kernel):
            cache = model(**inputs, use_cache=True).past_key_values
            more = torch.full((len(MIXED), 2), 7, device="cuda")
            mask = torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1)
            logits = [model(input_ids=more, attention_mask=mask, past_key_values=cache).logits]
            for token in (5, 6):
                one = torch.full((len(MIXED), 1), token, device="cuda")
                logits.append(model(input_ids=one, past_key_values=cache).logits)
        turns.append(torch.cat(logits, 1).float())
    scale = turns[0].abs().max()
    assert (turns[0] - turns[1]).abs().max() <= 3e-2 * scale
