"""A grown model computes what the small one did, until it is trained further."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dyvte.tiny.grow import grow


def test_new_layers_pass_everything_through(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=30
    )
    small = LlamaForCausalLM(config).eval()
    small.save_pretrained(tmp_path / "small")
    command = [sys.executable, "-m", "dyvte.tiny.grow", "--model", tmp_path / "small"]
    subprocess.run([*command, "--out", tmp_path / "deep", "--layers", "5"], check=True)
    deep, info = LlamaForCausalLM.from_pretrained(tmp_path / "deep", output_loading_info=True)
    assert deep.config.num_hidden_layers == 5 and not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.randint(30, (2, 7))
    assert torch.equal(deep(ids).logits, small(ids).logits)
    deep(ids, labels=ids).loss.backward()
    assert deep.model.layers[4].mlp.down_proj.weight.grad.abs().sum() > 0  # and can learn


def test_what_does_not_fit_is_refused():
    weights = {"model.layers.0.input_layernorm.weight": torch.ones(4)}
    for old, new in ((2, 4), (1, 1)):
        with pytest.raises(ValueError, match="cannot grow"):
            grow(weights, old, new)
