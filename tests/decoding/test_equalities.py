"""What a paper would claim of the decoder loop: equalities, in float32, on a small model."""

from __future__ import annotations

import pytest
import torch

from dyvte import FixedExit, LearnedExit, NoExit, attach
from dyvte.cost.kv import kv_bytes
from dyvte.decoding.attach import handle_of, is_attached
from dyvte.decoding.loop import run_layers
from dyvte.decoding.packed import pack
from dyvte.decoding.policy import Policy
from dyvte.decoding.trace import ExitTrace
from dyvte.families.base import stack_of
from tests.conftest import LAYERS, MIXED, PATCHES, Prompts

GREEDY = {"do_sample": False, "max_new_tokens": 8}
MODELS = ("hf_llava", "llava")


def arguments(name, prompts, side="left"):
    return prompts.hf(side) if name == "hf_llava" else prompts.ours(side)


def new_tokens(name, model, prompts, side="left", **options):
    """Tokens that ``generate`` adds, (B, new)."""
    inputs = arguments(name, prompts, side)
    out = model.generate(**inputs, **{**GREEDY, **options})
    return out[:, inputs["input_ids"].shape[1] :] if name == "hf_llava" else out


def last_logits(name, model, prompts, side="left"):
    """(B, vocabulary) logits of the next token."""
    return model(**arguments(name, prompts, side)).logits[:, -1]


@pytest.fixture(params=MODELS)
def named(request):
    return request.param, request.getfixturevalue(request.param)


@torch.no_grad()
def test_no_exit_equals_transformers(named, hf_llava, prompts):
    name, model = named
    reference_tokens = new_tokens("hf_llava", hf_llava, prompts)
    reference = last_logits("hf_llava", hf_llava, prompts)
    with attach(model, NoExit()):
        for side in ("left", "right"):
            torch.testing.assert_close(last_logits(name, model, prompts, side)[:, :199], reference[:, :199])
            assert torch.equal(new_tokens(name, model, prompts, side), reference_tokens)


@torch.no_grad()
def test_every_position_equals_transformers(hf_llava, prompts):
    inputs = prompts.hf("left")
    real = inputs["attention_mask"].bool()
    reference = hf_llava(**inputs).logits[real]
    with attach(hf_llava, NoExit()):
        torch.testing.assert_close(hf_llava(**inputs).logits[real], reference)


@torch.no_grad()
def test_detached_class_equals_transformers(llava, hf_llava, prompts):
    one = prompts[0]
    assert torch.equal(new_tokens("llava", llava, one), new_tokens("hf_llava", hf_llava, one))
    assert torch.equal(new_tokens("llava", llava, prompts), new_tokens("hf_llava", hf_llava, prompts))


def masked_logits(model, inputs, exit_layer):
    """Full-length run of transformers' own layers in which, above ``exit_layer``, no query sees a visual key."""
    core, decoder = model.model, model.model.language_model
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    visual = ids == model.config.image_token_id
    embeds = core.get_input_embeddings()(ids)
    if "pixel_values" in inputs:
        features = torch.cat(core.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output)
        embeds = embeds.masked_scatter(visual[..., None], features)
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    columns = ids.shape[1]
    causal = torch.ones(columns, columns, dtype=torch.bool).tril() & real[:, None, :]
    own = torch.eye(columns, dtype=torch.bool)
    rope, hidden = decoder.rotary_emb(embeds, position_ids=positions), embeds
    for index, layer in enumerate(decoder.layers):
        seen = causal if index <= exit_layer else causal & ~visual[:, None, :]
        hidden = layer(hidden, attention_mask=(seen | own)[:, None], position_embeddings=rope)
    return model.lm_head(decoder.norm(hidden))


@torch.no_grad()
@pytest.mark.parametrize("exit_layer", range(LAYERS))
def test_dropping_equals_masking(hf_llava, prompts, exit_layer):
    inputs = prompts.hf()
    expected = masked_logits(hf_llava, inputs, exit_layer)
    text = inputs["attention_mask"].bool() & (inputs["input_ids"] != hf_llava.config.image_token_id)
    with attach(hf_llava, FixedExit(exit_layer)) as handle:
        logits = hf_llava(**inputs).logits
    torch.testing.assert_close(logits[text], expected[text], rtol=1e-5, atol=1e-5)
    full = torch.tensor(handle.traces[-1].prompt_tokens)
    kept = full - torch.tensor(handle.traces[-1].visual_tokens)
    expected_tokens = torch.stack([full if index <= exit_layer else kept for index in range(LAYERS)])
    assert torch.equal(handle.traces[-1].tokens_per_layer, expected_tokens)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_one_by_one(named, prompts, gates, side):
    name, model = named
    with attach(model, LearnedExit(gates)) as handle:
        outputs = model(**arguments(name, prompts, side), use_cache=True)
        trace, cache = handle.traces[-1], outputs.past_key_values
        tokens = new_tokens(name, model, prompts, side)
        beams = new_tokens(name, model, prompts, side, num_beams=3)
        assert len(set(trace.exit_layers)) > 2, (
            "the samples must exit at different layers for this to say anything"
        )
        for i in range(len(prompts)):
            alone = model(**arguments(name, prompts[i]), use_cache=True)
            one = handle.traces[-1]
            torch.testing.assert_close(outputs.logits[i, -1], alone.logits[0, -1], rtol=1e-5, atol=1e-5)
            assert one.exit_layers == [trace.exit_layers[i]]
            assert torch.equal(one.tokens_per_layer[:, 0], trace.tokens_per_layer[:, i])
            torch.testing.assert_close(
                one.exit_probabilities[:, 0],
                trace.exit_probabilities[:, i],
                equal_nan=True,
                rtol=1e-4,
                atol=1e-5,
            )
            assert [layer[i] for layer in cache.kv_lengths] == [n for [n] in alone.past_key_values.kv_lengths]
            assert same_until_end(tokens[i], new_tokens(name, model, prompts[i])[0])
            assert same_until_end(beams[i], new_tokens(name, model, prompts[i], num_beams=3)[0])


def same_until_end(one, other):
    """Whether two generations are equal but for padding after the end."""

    def cut(row):
        row = row.tolist()
        return row[: row.index(2) + 1] if 2 in row else [t for t in row if t != 0]

    return cut(one) == cut(other)


@torch.no_grad()
def test_beams_without_exit_equal_transformers(named, hf_llava):
    """With one image a prompt at most: early versions of transformers 5 pair several of them wrongly in beams."""
    name, model = named
    prompts = Prompts(*(prompt for prompt in MIXED if prompt.count("image") < 2))
    reference = new_tokens("hf_llava", hf_llava, prompts, num_beams=3)
    with attach(model, NoExit()):
        assert torch.equal(new_tokens(name, model, prompts, num_beams=3), reference)


@torch.no_grad()
def test_sampling_is_reproducible(named, prompts, gates):
    name, model = named
    with attach(model, LearnedExit(gates)):
        runs = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            runs.append(new_tokens(name, model, prompts, do_sample=True, temperature=1.5))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@torch.no_grad()
@pytest.mark.parametrize("policy", ["none", "learned", *range(LAYERS)])
def test_cached_decoding_equals_recomputing(hf_llava, prompts, gates, policy):
    """Each step's logits equal those of one pass over prompt and tokens so far, with the same exits."""
    policy = {"none": NoExit(), "learned": LearnedExit(gates)}.get(policy) or FixedExit(policy)
    inputs = prompts.hf()
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    columns = ids.shape[1]
    with attach(hf_llava, policy) as handle:
        outputs = hf_llava(input_ids=ids, attention_mask=mask, use_cache=True, **inputs)
        exits = handle.traces[-1].exit_layers
        for _ in range(4):
            token = outputs.logits[:, -1:].argmax(-1)
            ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
            outputs = hf_llava(input_ids=token, attention_mask=mask, past_key_values=outputs.past_key_values)
            embeds = splice(hf_llava, ids, inputs["pixel_values"])
            answer = torch.arange(ids.shape[1]).expand_as(ids) >= columns
            row = pack(embeds, mask, None, ids == hf_llava.config.image_token_id, answer)
            trace = ExitTrace(LAYERS, row.layout)
            row = run_layers(stack_of(hf_llava), row, policy=policy, trace=trace)
            assert trace.exit_layers == exits
            expected = hf_llava.lm_head(row.hidden[0, row.layout.last_index])
            torch.testing.assert_close(outputs.logits[:, -1], expected, rtol=1e-4, atol=1e-4)
            last = row.layout.positions[row.layout.last_index]
            assert torch.equal(outputs.past_key_values.next_positions, last + 1)
        assert len(handle.traces) == 1  # decoding steps decide nothing


def splice(model, ids, pixels):
    core = model.model
    embeds = core.get_input_embeddings()(ids)
    features = torch.cat(core.get_image_features(pixels, return_dict=True).pooler_output)
    return embeds.masked_scatter((ids == model.config.image_token_id)[..., None], features)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_bytes_equal_the_traces_formula(prompts, gates, dtype):
    from tests.conftest import tiny_hf_llava

    model = tiny_hf_llava().to(dtype)
    inputs = prompts.hf()
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with attach(model, LearnedExit(gates)) as handle:
        cache = model(**inputs, use_cache=True).past_key_values
    trace = handle.traces[-1]
    assert cache.kv_lengths == trace.tokens_per_layer.tolist()
    held = {}
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values):
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    expected = sum(kv_bytes(model.config.text_config, trace, dtype))
    assert sum(held.values()) == expected == cache.nbytes
    assert (
        any(trace.exit_layers) and expected < sum(trace.prompt_tokens) * LAYERS * 2 * 2 * 16 * dtype.itemsize
    )


@torch.no_grad()
def test_chat_goes_on_from_the_cache(hf_llava, prompts, gates):
    """A second turn fed in one piece equals the same tokens fed one at a time."""
    inputs = prompts.hf()
    turn = torch.tensor([[50, 51, 52]] * len(prompts))
    with attach(hf_llava, LearnedExit(gates)):
        whole = hf_llava(**inputs, use_cache=True)
        steps = hf_llava(**inputs, use_cache=True)
        whole = hf_llava(input_ids=turn, past_key_values=whole.past_key_values)
        for column in turn.split(1, dim=1):
            steps = hf_llava(input_ids=column, past_key_values=steps.past_key_values)
        torch.testing.assert_close(whole.logits[:, -1], steps.logits[:, -1], rtol=1e-4, atol=1e-4)
        whole.past_key_values.crop(-2)
        assert [n - 1 for n in whole.past_key_values.kv_lengths[0]] == inputs["attention_mask"].sum(
            1
        ).tolist()


@torch.no_grad()
def test_image_at_the_very_end_stays(hf_llava, llava, gates):
    prompt = Prompts([[1, 5, 6], "image"])
    reference = new_tokens("hf_llava", hf_llava, prompt)
    for policy in (FixedExit(0), LearnedExit(gates, threshold=0.0)):
        with attach(llava, policy) as handle:
            assert torch.equal(new_tokens("llava", llava, prompt), reference)
        assert handle.traces[-1].exit_layers == [None]
        assert handle.traces[-1].tokens_per_layer.unique().tolist() == [3 + PATCHES]


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["eager"])
def test_kernels_agree(prompts, gates, kernel):
    from tests.conftest import tiny_hf_llava

    model, other = tiny_hf_llava(), tiny_hf_llava()
    other.set_attn_implementation(kernel)
    with attach(model, LearnedExit(gates)), attach(other, LearnedExit(gates)):
        one, two = model(**prompts.hf()), other(**prompts.hf())
        torch.testing.assert_close(one.logits[:, -1], two.logits[:, -1], rtol=1e-4, atol=1e-4)
        assert torch.equal(new_tokens("hf_llava", model, prompts), new_tokens("hf_llava", other, prompts))


@torch.no_grad()
def test_flash_kernel_receives_the_packed_row(prompts, gates, monkeypatch):
    """The variable-length kernel, played by plain attention over the offsets it is given."""
    import sys
    from types import SimpleNamespace

    from tests.conftest import tiny_hf_llava

    calls = []

    def varlen(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal):
        assert causal and cu_seqlens_q.dtype == torch.int32 and cu_seqlens_k[-1] == len(k)
        calls.append(len(cu_seqlens_q) - 1)
        out = torch.empty_like(q)
        for g in range(len(cu_seqlens_q) - 1):
            a, b = cu_seqlens_q[g : g + 2].tolist()
            c, d = cu_seqlens_k[g : g + 2].tolist()
            repeats = q.shape[1] // k.shape[1]
            keys, values = (t[c:d].repeat_interleave(repeats, 1) for t in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q[a:b], keys) * softmax_scale
            visible = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
            weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
            out[a:b] = torch.einsum("hqk,khd->qhd", weights, values)
            assert b - a <= max_seqlen_q and d - c <= max_seqlen_k
        return out

    steps = []

    def with_kvcache(q, k_cache, v_cache, *, cache_seqlens, softmax_scale):
        steps.append(len(q))
        assert q.shape[1] == 1 and k_cache.shape == v_cache.shape and k_cache.stride(-1) == 1
        out = torch.empty_like(q)
        for i in range(len(q)):
            held = k_cache.shape[1] if cache_seqlens is None else int(cache_seqlens[i])
            repeats = q.shape[2] // k_cache.shape[2]
            keys, values = (t[i, :held].repeat_interleave(repeats, 1) for t in (k_cache, v_cache))
            weights = (torch.einsum("qhd,khd->hqk", q[i], keys) * softmax_scale).softmax(-1)
            out[i] = torch.einsum("hqk,khd->qhd", weights, values)
        return out

    module = SimpleNamespace(flash_attn_varlen_func=varlen, flash_attn_with_kvcache=with_kvcache)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    model, other = tiny_hf_llava(), tiny_hf_llava()
    other.model.language_model.config._attn_implementation_internal = "flash_attention_2"
    with attach(model, LearnedExit(gates)):
        expected = new_tokens("hf_llava", model, prompts)
    with attach(other, LearnedExit(gates)):
        assert torch.equal(new_tokens("hf_llava", other, prompts), expected)
    # one call a layer for the whole batch, in prefill and in each of the steps after it
    assert calls == [len(prompts)] * LAYERS and steps == [len(prompts)] * LAYERS * (expected.shape[1] - 1)
    # two tokens at once continue caches whose layers hold different lengths, because samples left at some of them
    logits = []
    for each in (model, other):
        with attach(each, LearnedExit(gates)):
            cache = each(**prompts.hf("left"), use_cache=True).past_key_values
            assert len({tuple(layer.buffer.lengths) for layer in cache.layers}) > 1
            mask = torch.cat([prompts.hf("left")["attention_mask"], torch.ones(len(prompts), 2)], 1).long()
            more = torch.full((len(prompts), 2), 5)
            logits.append(each(input_ids=more, attention_mask=mask, past_key_values=cache).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_attach_and_detach_leave_no_trace(named, prompts, gates):
    name, model = named
    before = (set(model.state_dict()), new_tokens(name, model, prompts))
    handle = attach(model, LearnedExit(gates, threshold=0.0))
    assert is_attached(model) and handle_of(model) is handle and set(model.state_dict()) == before[0]
    with pytest.raises(ValueError, match="already"):
        attach(model, NoExit())
    handle.detach()
    handle.detach()
    assert not is_attached(model) and torch.equal(new_tokens(name, model, prompts), before[1])
    inner = model.model.language_model if name == "hf_llava" else model.model
    assert "forward" not in vars(inner) and not model.model._forward_pre_hooks
    with pytest.raises(RuntimeError), attach(model, NoExit()):
        raise RuntimeError
    assert not is_attached(model)


@torch.no_grad()
def test_what_cannot_be_done_is_said(hf_llava, llava, prompts):
    with attach(hf_llava, NoExit()), pytest.raises(ValueError, match="output_attentions"):
        hf_llava(**prompts.hf(), output_attentions=True)
    with pytest.raises(ValueError, match=r"layers 0\.\.3"):
        attach(hf_llava, FixedExit(4))
    with pytest.raises(ValueError, match="no adapter"):
        from transformers import GPT2Config, GPT2LMHeadModel

        attach(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)), NoExit())
    filled = hf_llava(**prompts.hf(), use_cache=True).past_key_values
    with attach(hf_llava, NoExit()), pytest.raises(ValueError, match="before the policy was attached"):
        hf_llava(input_ids=torch.ones(8, 1, dtype=torch.long), past_key_values=filled)
    inputs = prompts.ours()
    with pytest.raises(ValueError, match="no images were given"):
        llava(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match="8 <image> tokens|images were given"):
        llava(input_ids=inputs["input_ids"], images=inputs["images"][:2])
    mask = inputs["attention_mask"].clone()
    mask[3] = 0
    with pytest.raises(ValueError, match="no token"):
        llava.generate(inputs["input_ids"], images=inputs["images"], attention_mask=mask)


@torch.no_grad()
def test_observer_sees_what_attention_works_on(hf_llava, prompts):
    class Look(Policy):
        def observes(self, layer, layout):
            return layer != 2

        def observe(self, layer, inputs, trace):
            trace.scratch[layer] = inputs

    with attach(hf_llava, Look()) as handle:
        hf_llava(**prompts.hf("left"))
    scratch = handle.traces[-1].scratch
    assert sorted(scratch) == [0, 1, 3]
    # the first token of a prompt stands at position 0, which rotary embedding leaves alone
    attention = hf_llava.model.language_model.layers[0].self_attn
    norm = hf_llava.model.language_model.layers[0].input_layernorm
    key, layout = scratch[0].key, scratch[0].layout
    assert scratch[0].scaling == attention.scaling
    first = layout.slots[torch.tensor(layout.starts)]
    embeds = hf_llava.get_input_embeddings()(prompts.hf("left")["input_ids"]).flatten(0, 1)[first]
    expected = attention.k_proj(norm(embeds)).unflatten(-1, (-1, attention.head_dim))
    torch.testing.assert_close(key[0, :, list(layout.starts)].transpose(0, 1), expected)
