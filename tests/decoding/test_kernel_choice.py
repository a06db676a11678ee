"""Which attention kernel runs: decided when a policy is attached, named in reports, and forced by an argument."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch

from dyvte import FixedExit, LearnedExit, NoExit, attach
from dyvte.decoding.attach import is_attached
from dyvte.decoding.attention import plan, varlen
from dyvte.decoding.graphs import Graphs
from dyvte.families.base import stack_of
from dyvte.reduction import ToMe
from tests.conftest import LAYERS, MIXED, Prompts, tiny_hf_llava
from tests.fixtures.tape import record

CUDA, HALF = torch.device("cuda"), torch.bfloat16


@pytest.fixture
def card(monkeypatch):
    """What a machine offers; nothing runs there."""
    has = {"torch.nn.attention.varlen": True, "flash_attn": False}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: has[name] or None)
    monkeypatch.setattr(varlen, "_torch_kernel", lambda: has["torch.nn.attention.varlen"] or None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: has.get("capability", (9, 0)))
    return has


def test_the_first_kernel_that_fits_is_chosen(card):
    choose = plan.choose_kernel
    assert choose("sdpa", CUDA, HALF, [128]) == choose(None, CUDA, torch.float16, [256]) == "torch_varlen"
    # asked for, on a CPU, in single precision, with heads that the kernel does not take
    assert choose("eager", CUDA, HALF, [128]) == "eager"
    assert choose("flash_attention_2", CUDA, HALF, [128]) == "flash_attention_2"
    assert choose("sdpa", torch.device("cpu"), HALF, [128]) == "sdpa"
    assert choose("sdpa", CUDA, torch.float32, [128]) == "sdpa"
    assert choose("sdpa", CUDA, HALF, [512]) == choose("sdpa", CUDA, HALF, [100]) == "sdpa"
    card["capability"] = (7, 5)
    assert choose("sdpa", CUDA, HALF, [128]) == "sdpa"
    card["torch.nn.attention.varlen"], card["flash_attn"] = False, True
    assert choose("sdpa", CUDA, HALF, [128]) == "flash_attention_2"
    assert choose("sdpa", CUDA, torch.float32, [128]) == "sdpa"


def test_a_kernel_without_windows_is_none(monkeypatch):
    """That of torch 2.10."""
    attention = pytest.importorskip("torch.nn.attention.varlen")
    assert varlen._torch_kernel.__wrapped__() is attention.varlen_attn
    monkeypatch.setattr(attention, "varlen_attn", lambda query, key, value, is_causal=False: query)
    assert varlen._torch_kernel.__wrapped__() is None


@torch.no_grad()
def test_the_kernel_is_decided_at_attach_named_and_forced(prompts):
    model = tiny_hf_llava()
    with attach(model, NoExit()) as handle:
        model.model.language_model.config._attn_implementation_internal = "eager"
        logits = model(**prompts.hf()).logits
        assert handle.kernel == handle.traces[-1].report()[0].run.attention == "sdpa"
        handle.kernel = None
        assert handle.kernel == handle.run.attention == "eager"
    with attach(model, NoExit(), kernel="sdpa") as handle:
        torch.testing.assert_close(model(**prompts.hf()).logits, logits)
        assert handle.traces[-1].report()[0].run.attention == "sdpa"
        with pytest.raises(ValueError, match="'flex_attention' cannot run packed rows"):
            handle.kernel = "flex_attention"
    with pytest.raises(ValueError, match="'flex_attention' cannot run packed rows"):
        attach(model, NoExit(), kernel="flex_attention")


@torch.no_grad()
def test_a_kernel_where_it_cannot_run_says_what_to_do(prompts):
    model = tiny_hf_llava()
    with (
        attach(model, NoExit(), kernel="torch_varlen"),
        pytest.raises(
            ValueError, match="torch_varlen needs CUDA and half precision, the states are torch.float32"
        ),
    ):
        model(**prompts.hf())


@torch.no_grad()
def test_a_fallback_is_said_once(monkeypatch):
    """Merged tokens carry a bias, which the variable-length kernels do not take: SDPA gives what it gives."""
    monkeypatch.setitem(
        varlen.KERNELS, "torch_varlen", lambda: varlen.TorchVarlen.__new__(varlen.TorchVarlen)
    )
    monkeypatch.setattr(varlen.TorchVarlen, "attend", lambda self, q, k, v, *rest: _by_sdpa(q, k, v, *rest))
    plan._say_once.cache_clear()
    model, inputs = tiny_hf_llava(), Prompts(MIXED[0], MIXED[5]).hf()
    with attach(model, ToMe(1)):
        expected = model(**inputs).logits
    with warnings.catch_warnings(record=True) as said, attach(model, ToMe(1), kernel="torch_varlen"):
        warnings.simplefilter("always")
        for _ in range(2):
            torch.testing.assert_close(model(**inputs).logits, expected)
    assert [str(one.message) for one in said if "SDPA runs there" in str(one.message)] == [
        "torch_varlen cannot attend to merged tokens, nor within windows or blocks of tokens: SDPA runs there"
    ]


def _by_sdpa(query, key, value, offsets, longest, scaling):
    parts = []
    for (a, b), (c, d) in zip(*(of.unfold(0, 2, 1).tolist() for of in offsets), strict=True):
        q, k, v = (part[None].transpose(1, 2) for part in (query[a:b], key[c:d], value[c:d]))
        parts.append(plan.sdpa.sdpa(q, k, v, None, scaling)[0].transpose(0, 1))
    return torch.cat(parts)


def test_graphs_and_the_fastest_kernel_are_defaults_on_a_card(hf_llava, monkeypatch, card):
    class OnCuda:
        device, dtype = CUDA, HALF
        is_floating_point = staticmethod(lambda: True)

    own, decoder = Graphs(record), stack_of(hf_llava).decoder
    with attach(hf_llava, NoExit()) as handle:
        assert handle.graphs is None and not handle.run.graphs and handle.kernel == "sdpa"
    with monkeypatch.context() as on_card:
        on_card.setattr(type(decoder), "parameters", lambda self: iter([OnCuda]))
        with attach(hf_llava, NoExit()) as handle:
            assert handle.kernel == handle.run.attention == "torch_varlen"
            assert handle.graphs is not None and handle.graphs.fallback and handle.run.graphs
        with attach(hf_llava, NoExit(), None, kernel=None) as handle:
            assert handle.graphs is None and not handle.run.graphs and handle.kernel == "sdpa"
        on_card.setattr(decoder.rotary_emb, "rope_type", "dynamic")
        with attach(hf_llava, NoExit()) as handle:
            assert handle.graphs is None
    with attach(hf_llava, NoExit(), own) as handle:
        assert handle.graphs is own and handle.run.graphs and handle.kernel == "sdpa"
        handle.graphs = "auto"
        assert handle.graphs is None and not handle.run.graphs
        monkeypatch.setattr(decoder.rotary_emb, "rope_type", "dynamic")
        with pytest.raises(ValueError, match="dynamic"):
            handle.graphs = own
    assert not is_attached(hf_llava)
    with pytest.raises(ValueError, match="dynamic"):
        attach(hf_llava, NoExit(), own)
    assert not is_attached(hf_llava)


@pytest.mark.parametrize(
    ("change", "reason"),
    [("experts", "mixtures of experts"), ("quantized", "quantized weights")],
)
def test_work_that_waits_for_the_device_is_refused(change, reason):
    model = tiny_hf_llava()
    if change == "experts":
        model.model.language_model.config.num_experts = 8
    else:
        projection = model.model.language_model.layers[1].mlp.up_proj
        projection.weight = torch.nn.Parameter(projection.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=reason):
        attach(model, FixedExit(1), Graphs(record))


def test_a_layer_that_cannot_be_recorded_is_one_clear_error(hf_llava, monkeypatch):
    layer = type(hf_llava.model.language_model.layers[0].mlp)
    plain = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x: plain(self, x) * float(x.isfinite().all()))
    with torch.no_grad(), attach(hf_llava, NoExit(), Graphs(record)):
        hf_llava(**Prompts(MIXED[0]).hf())
        with pytest.raises(
            RuntimeError, match="work cannot be recorded as CUDA graphs .* attach with graphs=None"
        ):
            hf_llava(**Prompts(MIXED[0]).hf())


@torch.no_grad()
@pytest.mark.parametrize("fails_at", [1, 2, LAYERS + 1])
def test_by_default_work_that_cannot_be_recorded_runs_as_usual(hf_llava, gates, fails_at):
    """The image encoder comes first, then layers, then, in the second answer, a decoding step."""
    graphs, inputs = Graphs(fails(fails_at), fallback=True), Prompts(MIXED[0], MIXED[5]).hf()
    run = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
    with attach(hf_llava, LearnedExit(gates), None) as handle:
        expected, exits = hf_llava.generate(**inputs, **run), handle.traces[-1].exit_layers
    with attach(hf_llava, LearnedExit(gates), graphs) as handle, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(4):
            assert torch.equal(hf_llava.generate(**inputs, **run), expected)
            assert handle.traces[-1].exit_layers == exits
        assert graphs.failed and graphs.recorded == fails_at and graphs.nbytes == 0
        assert handle.graphs is None and not handle.run.graphs
    assert [str(one.message) for one in said if "recorded" in str(one.message)] == [
        "this model's work cannot be recorded as CUDA graphs (out of memory): it runs without"
    ]


@torch.no_grad()
def test_a_step_that_cannot_be_recorded_is_taken_as_usual(hf_llava):
    """Its recording fails in the last layer, when all others have noted the new token."""
    inputs, down, failed = Prompts(MIXED[0], MIXED[5]).hf(), stack_of(hf_llava).layers[-1].mlp.down_proj, []

    def no_memory(module, args):
        if torch.utils._python_dispatch._get_current_dispatch_mode() and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("out of memory")

    def decoded(graphs):
        with attach(hf_llava, NoExit(), graphs):
            cache = hf_llava(**inputs, use_cache=True).past_key_values
            tokens = [torch.full((2, 1), token) for token in (5, 6, 7, 8, 9)]
            logits = [hf_llava(input_ids=token, past_key_values=cache).logits for token in tokens]
        return torch.cat(logits, 1), cache.kv_lengths

    expected, lengths = decoded(None)
    hook = down.register_forward_pre_hook(no_memory)
    try:
        with pytest.warns(match="it runs without"):
            found, found_lengths = decoded(Graphs(record, fallback=True))
    finally:
        hook.remove()
    assert failed and found_lengths == lengths
    torch.testing.assert_close(found, expected)


def fails(at):
    """A tape that has no memory for its ``at``-th recording."""
    asked = []

    def recorder(work):
        asked.append(work)
        if len(asked) >= at:
            raise torch.OutOfMemoryError("out of memory")
        return record(work)

    return recorder
