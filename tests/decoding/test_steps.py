"""Decoding steps of large, uneven batches: the cache is read in groups, written in place, and never copied."""

from __future__ import annotations

import pytest
import torch

from dyvte import FixedExit, LearnedExit, NoExit, attach
from dyvte.decoding.attention import sdpa
from dyvte.decoding.cache import buffer
from dyvte.decoding.cache.groups import Groups
from dyvte.decoding.cache.ragged import RaggedLayer
from tests.conftest import LAYERS, MIXED, Prompts

HEADS, WIDTH = 2, 4


@pytest.fixture
def small_groups(monkeypatch):
    """Growth of one token, so that samples a few tokens apart stand in different groups, and rooms fill often."""
    monkeypatch.setattr(buffer, "GROWTH", 1)


def tokens(count):
    return torch.randn(1, HEADS, count, WIDTH), torch.randn(1, HEADS, count, WIDTH)


class PlainLayer:
    """What a ragged layer must hold, as one list of tensors per sample."""

    def __init__(self, samples):
        self.keys, self.values = [[] for _ in range(samples)], [[] for _ in range(samples)]

    def append(self, keys, values, lengths):
        for held, new in ((self.keys, keys), (self.values, values)):
            for sample, part in enumerate(new[0].split(list(lengths), dim=1)):
                held[sample].append(part)

    def select(self, samples):
        self.keys = [list(self.keys[s]) for s in samples]
        self.values = [list(self.values[s]) for s in samples]

    def crop(self, count):
        for held in (self.keys, self.values):
            held[:] = [[torch.cat(parts, 1)[:, :-count]] for parts in held]

    def check(self, layer):
        batches = layer.buffer.batches()
        order = layer.buffer.groups().order
        order = range(len(self.keys)) if order is None else order.tolist()
        rows = [row for keys, values, mask in batches for row in unmasked(keys, values, mask)]
        assert len(rows) == len(self.keys)
        for sample, (keys, values) in zip(order, rows, strict=True):
            assert torch.equal(keys, torch.cat(self.keys[sample], 1))
            assert torch.equal(values, torch.cat(self.values[sample], 1))
            for ours, expected in zip(layer.buffer.sequence(sample), (keys, values), strict=True):
                assert torch.equal(ours, expected)


def unmasked(keys, values, mask):
    for row in range(len(keys)):
        seen = slice(None) if mask is None else mask[row, 0, 0]
        yield keys[row][:, seen], values[row][:, seen]


@pytest.mark.parametrize("growth", [1, 3, 64])
def test_cache_holds_what_was_appended(monkeypatch, growth):
    monkeypatch.setattr(buffer, "GROWTH", growth)
    torch.manual_seed(0)
    lengths = [3, 30, 4, 29, 3, 90, 28, 5]
    layer, plain = RaggedLayer(), PlainLayer(len(lengths))

    def add(counts):
        new = tokens(sum(counts))
        layer.append(*new, tuple(counts))
        plain.append(*new, tuple(counts))

    add(lengths)
    for step in range(12):
        add([1] * len(plain.keys))
        plain.check(layer)
        assert layer.lengths == [sum(part.shape[1] for part in parts) for parts in plain.keys]
        if step == 3:
            beams = [5, 0, 0, 2, 7, 5]
            layer.buffer.select(beams)
            plain.select(beams)
            plain.check(layer)
        if step == 6:
            add([2, 1, 4, 1, 3, 2])
            plain.check(layer)
        if step == 8:
            layer.buffer.crop(2)
            plain.crop(2)
            plain.check(layer)


def test_steps_write_in_place_and_read_few_batches(monkeypatch):
    """32 samples after mixed exits: two batches, made once, whose storage stays the same over 40 steps."""
    made = []
    monkeypatch.setattr(buffer, "Groups", lambda *args: made.append(args) or Groups(*args))
    layer, lengths = RaggedLayer(), [640 + i if i % 3 else 50 + i for i in range(32)]
    layer.append(*tokens(sum(lengths)), tuple(lengths))
    assert layer.allocated_nbytes == layer.nbytes  # nothing but the tokens after prefill
    layer.append(*tokens(32), (1,) * 32)
    places = layer.keys.data_ptr(), layer.values.data_ptr()
    for _ in range(40):
        layer.append(*tokens(32), (1,) * 32)
        batches = layer.buffer.batches()
        assert sorted(len(keys) for keys, _, _ in batches) == [11, 21]
        inside = {layer.keys.untyped_storage().data_ptr(), layer.values.untyped_storage().data_ptr()}
        assert {
            t.untyped_storage().data_ptr() for keys, values, _ in batches for t in (keys, values)
        } == inside
    assert (layer.keys.data_ptr(), layer.values.data_ptr()) == places and len(made) == 1
    assert layer.nbytes == 2 * (sum(lengths) + 41 * 32) * HEADS * WIDTH * 4 < layer.allocated_nbytes


def test_masked_room_does_no_harm():
    """Room that was never written is finite: a masked NaN would still spoil the sum."""
    layer = RaggedLayer()
    layer.append(*tokens(8), (3, 5))
    layer.append(*tokens(2), (1, 1))
    assert torch.isfinite(layer.keys).all() and torch.isfinite(layer.values).all()


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_generation_in_groups_equals_one_by_one(hf_llava, gates, small_groups, options):
    prompts = Prompts(*MIXED, *MIXED[::-1])
    with attach(hf_llava, LearnedExit(gates)) as handle:
        run = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, **options}
        inputs = prompts.hf()
        together = hf_llava.generate(**inputs, **run)[:, inputs["input_ids"].shape[1] :]
        assert len(set(handle.traces[-1].exit_layers)) > 2
        for i in range(len(prompts)):
            inputs = prompts[i].hf()
            alone = hf_llava.generate(**inputs, **run)[:, inputs["input_ids"].shape[1] :]
            assert torch.equal(together[i : i + 1], alone)


@torch.no_grad()
def test_a_step_makes_one_call_per_group(hf_llava, gates, monkeypatch):
    calls = []
    plain = sdpa.sdpa
    monkeypatch.setattr(sdpa, "sdpa", lambda *args: calls.append(len(args[0])) or plain(*args))
    prompts = Prompts(*MIXED * 4)
    with attach(hf_llava, LearnedExit(gates)):
        out = hf_llava(**prompts.hf(), use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
        calls.clear()
        hf_llava(input_ids=token, past_key_values=out.past_key_values)
    assert calls == [32] * LAYERS


@torch.no_grad()
def test_neighbours_of_equal_length_share_a_call(hf_llava, monkeypatch):
    """Prefill of prompts with 7, 7, 7 and 3 tokens: two calls a layer, and the logits of one by one."""
    calls = []
    plain = sdpa.sdpa
    monkeypatch.setattr(sdpa, "sdpa", lambda *args: calls.append(len(args[0])) or plain(*args))
    prompts = Prompts([list(range(1, 8))], [list(range(11, 18))], [list(range(21, 28))], [[1, 90, 91]])
    with attach(hf_llava, NoExit()):
        together = hf_llava(**prompts.hf()).logits[:, -1]
        assert calls == [3, 1] * LAYERS
        for i in range(4):
            torch.testing.assert_close(together[i], hf_llava(**prompts[i].hf()).logits[0, -1])


@torch.no_grad()
def test_matrix_products_get_rows_with_plain_strides(hf_llava):
    """With the strides of a transpose, even over a dimension of size 1, PyTorch copies the weights."""
    plain = []

    def look(module, args):
        plain.append(args[0].stride() == torch.empty(args[0].shape).stride())

    prompts = Prompts(*MIXED).hf("left")
    linears = [m for m in hf_llava.model.language_model.layers.modules() if isinstance(m, torch.nn.Linear)]
    hooks = [module.register_forward_pre_hook(look) for module in linears]
    try:
        with attach(hf_llava, NoExit()):
            hf_llava.generate(**prompts, do_sample=False, max_new_tokens=3)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(plain) == 3 * len(linears) and all(plain)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_read_on_the_host(hf_llava, gates, monkeypatch, side):
    """A prefill reads its masks, and the decisions of each gate that is asked, once; exits and steps read nothing."""
    reads = []

    def counted(name):
        plain = getattr(torch.Tensor, name)

        def read(self, *args, **kwargs):
            reads.append(name)
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, read)

    inputs = Prompts(*MIXED).hf(side)
    visual = inputs["input_ids"] == hf_llava.config.image_token_id
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(*visual.shape, 64, generator=generator)
    decoder, mask = hf_llava.model.language_model, inputs["attention_mask"]
    with attach(hf_llava, LearnedExit(gates)) as handle:
        for name in ("tolist", "item", "cpu", "nonzero", "unique", "__bool__", "__int__", "__index__"):
            counted(name)
        given = {"inputs_embeds": embeds, "attention_mask": mask, "visual_mask": visual}
        cache = decoder(**given, use_cache=True).past_key_values
        seen = list(reads)
        assert len({layer for layer in handle.traces[0].exit_layers if layer is not None}) > 1
        asked = (~handle.traces[0].exit_probabilities.isnan()).any(1)
        assert seen == ["cpu"] + ["tolist"] * sum(asked.tolist())
        reads.clear()
        for policy in (NoExit(), FixedExit(1)):
            handle.policy = policy
            decoder(**given, use_cache=True)
            assert reads == ["cpu"]
            reads.clear()
        for _ in range(3):
            decoder(inputs_embeds=embeds[:, :1], past_key_values=cache, use_cache=True)
        assert not reads


@torch.no_grad()
def test_crop_removes_from_all_layers_or_from_none(hf_llava):
    """After an exit the upper layers hold fewer tokens than the lower ones."""
    with attach(hf_llava, FixedExit(0)):
        cache = hf_llava(**Prompts(MIXED[2]).hf(), use_cache=True).past_key_values
    before = cache.kv_lengths
    assert before == [[7], [3], [3], [3]]
    with pytest.raises(ValueError, match="holds only 3 in some layer"):
        cache.crop(-4)
    assert cache.kv_lengths == before and cache.columns == 7
    cache.crop(0)  # nothing, as in transformers
    assert cache.kv_lengths == before
    cache.crop(5)  # older versions of transformers name the columns to keep
    assert cache.kv_lengths == [[5], [1], [1], [1]] and cache.columns == 5
    assert cache.next_positions.tolist() == [5]


@torch.no_grad()
def test_beams_are_read_on_the_host_once(hf_llava, monkeypatch):
    with attach(hf_llava, NoExit()):
        cache = hf_llava(**Prompts(*MIXED).hf(), use_cache=True).past_key_values
    reads, plain = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(1) or plain(self))
    cache.reorder_cache(torch.tensor([1, 1, 0]))
    assert len(reads) == 1 and [len(lengths) for lengths in cache.kv_lengths] == [3] * LAYERS
