"""Attention statistics equal those of whole attention matrices, made by transformers' eager attention."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dyvte import FixedExit, LearnedExit, NoExit, attach
from dyvte.decoding.attention.interface import AttentionInputs
from dyvte.decoding.attention.logits import causal_logits
from dyvte.decoding.packed import Layout
from dyvte.reduction.combine import Combine
from dyvte.study import attention_stats
from dyvte.study.attention import over_samples
from dyvte.study.attention_stats import KINDS, MEASURES, AttentionStats, measures_of, statistics_of
from tests.conftest import IMAGE, LAYERS, tiny_hf_llava


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda heads: f"{heads}kv")
def model(request):
    """A model whose 4 query heads share 1, 2 or 4 key heads, and which can return attention weights."""
    model = tiny_hf_llava(kv_heads=request.param)
    model.set_attn_implementation("eager")
    return model


@torch.no_grad()
def whole_matrices(model, prompts, side: str):
    """Per sample: (L, H, n, n) weights over its n real tokens, states entering each layer, and its visual tokens."""
    inputs = prompts.hf(side)
    out = model.model(**inputs, output_attentions=True, output_hidden_states=True)
    for sample, mask in enumerate(inputs["attention_mask"].bool()):
        weights = torch.stack([layer[sample][:, mask][:, :, mask] for layer in out.attentions])
        states = [states[sample][mask] for states in out.hidden_states]
        yield weights, states, (inputs["input_ids"][sample][mask] == IMAGE).tolist()


def plain(weights: torch.Tensor, visual: list[bool], text_queries: list[int]) -> np.ndarray:
    """(M, K, H) by loops over queries, from the weights (H, n, n) of one layer and sample."""
    images = [i for i, is_image in enumerate(visual) if is_image]
    text = [i for i, is_image in enumerate(visual) if not is_image]
    out = np.full((len(MEASURES), len(KINDS), len(weights)), np.nan)
    for kind, (queries, keys) in enumerate([(images, images), (text_queries, images), (text_queries, text)]):
        if not queries or not keys:
            continue
        for head, matrix in enumerate(weights.double().tolist()):
            masses, shares, entropies = [], [], []
            for query in queries:
                seen = [matrix[query][key] for key in keys if key <= query]
                masses.append(sum(seen))
                shares.append(sum(seen) / len(seen))
                entropies.append(-sum(w / sum(seen) * math.log(w / sum(seen)) for w in seen if w > 0))
            out[:, kind, head] = [sum(values) / len(queries) for values in (masses, shares, entropies)]
    return out


def after_last_image(visual: list[bool]) -> list[int]:
    if not any(visual):
        return []
    last = max(i for i, is_image in enumerate(visual) if is_image)
    return list(range(last + 1, len(visual)))


def measured(model, prompts, side, policy):
    with attach(model, Combine((AttentionStats(), policy))) as handle, torch.no_grad():
        model(**prompts.hf(side), use_cache=False)
        return statistics_of(handle.traces[0]), handle.traces[0]


def compare(statistics, sample: int, layer: int, expected: np.ndarray) -> None:
    for got, wanted in (
        (statistics.mean, expected.mean(-1)),
        (statistics.variance, expected.var(-1)),
    ):
        np.testing.assert_allclose(got[sample, :, :, layer].numpy(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at_once", [3, 128])
@pytest.mark.parametrize("side", ["left", "right"])
def test_equals_whole_attention_matrices(model, prompts, side, at_once, monkeypatch):
    monkeypatch.setattr(attention_stats, "QUERIES_AT_ONCE", at_once)
    statistics, _ = measured(model, prompts, side, NoExit())
    for sample, (weights, _, visual) in enumerate(whole_matrices(model, prompts, side)):
        for layer in range(LAYERS):
            compare(statistics, sample, layer, plain(weights[layer], visual, after_last_image(visual)))
    text_only = statistics.mean[3]
    assert text_only.isnan().all(), "a sample without image has no statistics"
    assert not statistics.mean[[0, 1, 2, 4, 5, 6, 7]].isnan().any()


@torch.no_grad()
def text_alone(model, states: torch.Tensor, visual: list[bool], first: int):
    """Weights of the layers from ``first`` on, run by hand on the text tokens at their places in the prompt."""
    decoder = model.model.language_model
    places = torch.tensor([i for i, is_image in enumerate(visual) if not is_image])
    hidden = states[places][None]
    rope = decoder.rotary_emb(hidden, position_ids=places[None])
    later = torch.full((len(places), len(places)), float("-inf")).triu(1)[None, None]
    for layer in decoder.layers[first:]:
        _, weights = layer.self_attn(
            layer.input_layernorm(hidden), position_embeddings=rope, attention_mask=later
        )
        hidden = layer(hidden, position_embeddings=rope, attention_mask=later)
        yield places.tolist(), weights[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_after_an_exit_the_text_alone_is_measured(model, prompts, side):
    leave = 1
    statistics, _ = measured(model, prompts, side, FixedExit(leave))
    for sample, (weights, states, visual) in enumerate(whole_matrices(model, prompts, side)):
        queries = after_last_image(visual)
        for layer in range(leave + 1):
            compare(statistics, sample, layer, plain(weights[layer], visual, queries))
        for layer, (places, after) in enumerate(
            text_alone(model, states[leave + 1], visual, leave + 1), leave + 1
        ):
            expected = plain(after, [False] * len(places), [places.index(query) for query in queries])
            compare(statistics, sample, layer, expected)
    assert statistics.mean[:, :, :2, leave + 1 :].isnan().all(), "nobody attends to an image that left"
    assert (statistics.mean[0, 0, 2, leave + 1 :] - 1).abs().max() < 1e-6


def test_each_sample_exits_at_its_own_layer(hf_llava, prompts, gates):
    statistics, trace = measured(hf_llava, prompts, "left", LearnedExit(gates))
    with attach(hf_llava, LearnedExit(gates)) as handle, torch.no_grad():
        hf_llava(**prompts.hf("left"), use_cache=False)
    assert trace.exit_layers == handle.traces[0].exit_layers, "measuring changes no exit"
    assert len(set(trace.exit_layers)) > 2
    for sample, layer in enumerate(trace.exit_layers):
        if sample == 3:
            continue  # no image
        with_image = LAYERS if layer is None else layer + 1
        assert statistics.mean[sample, 0, 1].isfinite().tolist() == [i < with_image for i in range(LAYERS)]
        alone, _ = measured(hf_llava, prompts[sample], "left", LearnedExit(gates))
        torch.testing.assert_close(
            alone.mean[0], statistics.mean[sample], atol=1e-5, rtol=1e-4, equal_nan=True
        )


def test_the_policy_beside_still_observes(hf_llava, prompts):
    seen = []

    class Looks(NoExit):
        def observes(self, layer, layout):
            return layer > 0

        def observe(self, layer, inputs, trace):
            seen.append((layer, inputs.query.shape[2]))

    measured(hf_llava, prompts[0], "left", Looks())
    assert seen == [(layer, 11) for layer in range(1, LAYERS)]


def test_a_model_of_another_scaling(hf_llava, prompts, monkeypatch):
    """The scaling of the model's layers is used, whatever it is."""
    usual, _ = measured(hf_llava, prompts[0], "left", NoExit())
    for layer in hf_llava.model.language_model.layers:
        monkeypatch.setattr(layer.self_attn, "scaling", 1e-9)
    with attach(hf_llava, AttentionStats()) as handle, torch.no_grad():
        hf_llava(**prompts[0].hf(), use_cache=False)
    # without any scores weights are even: 7 text tokens after 3 + 4 tokens see 8, 9, 10, 11 tokens, 4 of them visual
    even = statistics_of(handle.traces[0]).mean[0, 0, 1]
    assert even.tolist() == pytest.approx([sum(4 / n for n in (8, 9, 10, 11)) / 4] * LAYERS)
    assert not torch.equal(even, usual.mean[0, 0, 1])


def test_entropy_of_keys_whose_weights_round_to_zero():
    logits = torch.tensor([[[0.0, -300.0, -300.0, -300.0]]])
    mass, weight, entropy = measures_of(logits, logits.softmax(-1), torch.tensor([False, True, True, True]))
    assert (mass.item(), weight.item()) == (0.0, 0.0)
    assert entropy.item() == pytest.approx(math.log(3))


def test_an_unmeasured_prefill_says_so(hf_llava, prompts):
    with attach(hf_llava, NoExit()) as handle, torch.no_grad():
        hf_llava(**prompts[0].hf(), use_cache=False)
    with pytest.raises(ValueError, match="AttentionStats"):
        statistics_of(handle.traces[0])


def test_mean_and_variance_over_samples_and_heads():
    heads = np.random.default_rng(0).normal(size=(5, 3, 8))  # samples, layers, heads
    heads[1, 0] = heads[:, 2] = np.nan
    mean, variance = over_samples(heads.mean(-1), heads.var(-1))
    for layer in range(2):
        every = heads[:, layer][np.isfinite(heads[:, layer])]
        assert mean[layer] == pytest.approx(every.mean()) and variance[layer] == pytest.approx(every.var())
    assert np.isnan(mean[2]) and np.isnan(variance[2])


def test_a_merged_token_counts_as_often_as_what_it_stands_for():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, 5, 8, generator=generator) for heads in (4, 2))
    sizes = torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0])
    layout = replace(Layout.of_text(torch.arange(5), 5), sizes=sizes)
    inputs = AttentionInputs(query, key, key, layout, 8**-0.5)
    got = causal_logits(inputs, torch.tensor([3, 4]), 0, 5).softmax(-1)
    counts = sizes.long()
    twice = key.repeat_interleave(counts, dim=2)  # each token as often as it counts
    token = torch.arange(5).repeat_interleave(counts)
    for row, at in enumerate((3, 4)):
        for head in range(4):
            scores = torch.tensor(
                [
                    float(query[0, head, at] @ twice[0, head // 2, i]) / math.sqrt(8)
                    if t <= at
                    else -math.inf
                    for i, t in enumerate(token)
                ]
            )
            expected = torch.zeros(5).index_add_(0, token, scores.softmax(0))
            torch.testing.assert_close(got[head, row], expected)


def test_measuring_changes_no_reduction(hf_llava, prompts):
    """A policy that works before the first layer, and on values, does so beside ``AttentionStats``."""
    seen = []

    class Busy(NoExit):
        def enter(self, row, trace):
            seen.append("enter")
            return row

        def observes(self, layer, layout):
            return True

        def observe(self, layer, inputs, trace):
            seen.append(("values", layer))

    measured(hf_llava, prompts[0], "left", Busy())
    assert seen == ["enter", *(("values", layer) for layer in range(LAYERS))]
