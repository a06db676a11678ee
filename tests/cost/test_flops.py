"""FLOPs against PyTorch's own counter, and against the paper's columns."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig

from dyvte import FixedExit, LearnedExit, NoExit, attach
from dyvte.cost.flops import layer_flops, layer_params, prefill_flops, vision_flops


@torch.no_grad()
@pytest.mark.parametrize("policy", ["none", "fixed", "learned"])
def test_equal_to_torchs_counter(prompts, gates, policy):
    """One sample, eager attention (torch does not see into every SDPA kernel); the language head is left out."""
    from tests.conftest import tiny_hf_llava

    model = tiny_hf_llava()
    model.set_attn_implementation("eager")
    policy = {"none": NoExit(), "fixed": FixedExit(1), "learned": LearnedExit(gates)}[policy]
    for i in range(len(prompts)):
        one = prompts[i].hf()
        with attach(model, policy) as handle, FlopCounterMode(display=False) as counter:
            model(**one, logits_to_keep=1)
        report = prefill_flops(model, handle.traces[-1])
        head = 2 * model.lm_head.weight.numel()
        # transformers before 5.20 makes the rotary angles by a matrix product, which torch counts
        angles = counter.get_total_flops() - report.total[0] - head
        assert angles in (0, rotary_flops(model, handle.traces[-1]))


def rotary_flops(model, trace) -> int:
    """Of the outer products of positions and frequencies, made anew when the row changes."""
    config, tokens = model.config.text_config, trace.tokens_per_layer[:, 0].tolist()
    made = tokens[:1] + [new for old, new in zip(tokens, tokens[1:], strict=False) if new != old]
    return config.hidden_size // config.num_attention_heads * sum(made)


LLAMA = {
    "7B": LlamaConfig(),
    "13B": LlamaConfig(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
    ),
}
CLIP_L_336 = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
)


def test_weights_of_a_layer():
    assert layer_params(LLAMA["7B"]) * 32 == 6_476_005_376  # 6.74 B without embeddings, head and norms
    grouped = LlamaConfig(hidden_size=64, intermediate_size=96, num_attention_heads=8, num_key_value_heads=2)
    assert layer_params(grouped) == 2 * 64 * 64 + 2 * 64 * 16 + 3 * 64 * 96


@pytest.mark.parametrize(("size", "column"), [("7B", 8.8), ("13B", 16.8)])
def test_papers_baseline_columns(size, column):
    """arXiv:2411.19628, POPE and GQA baselines: 576 visual tokens and a prompt of 635 in all, within 3%."""
    config, tokens = LLAMA[size], 635
    visual = (CLIP_L_336.image_size // CLIP_L_336.patch_size) ** 2
    projector = 2 * visual * (1024 * config.hidden_size + config.hidden_size**2)
    total = vision_flops(CLIP_L_336) + projector + config.num_hidden_layers * layer_flops(config, tokens)
    assert total / 1e12 == pytest.approx(column, rel=0.03)


def test_exit_saves_what_the_formula_says():
    """LLaVA-1.5 7B: an exit after layer l leaves layers 0..l full, the others text only."""
    config = LLAMA["7B"]
    full, text = layer_flops(config, 635), layer_flops(config, 635 - 576)
    assert full / text == pytest.approx(11.0, rel=0.05)
