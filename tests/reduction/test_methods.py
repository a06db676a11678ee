"""Each method equals a plain computation of its rule, in prefill and from the cache, alone and in a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from dyvte import FixedExit, LearnedExit, NoExit, attach
from dyvte.decoding.attention import sdpa
from dyvte.decoding.policy import Policy
from dyvte.reduction import (
    VTW,
    Combine,
    FastV,
    Pooling,
    PyramidDrop,
    RandomDrop,
    StabilityExit,
    ToMe,
)
from dyvte.reduction.vtw import choose_layer, exit_divergences
from tests.conftest import LAYERS
from tests.reduction import plain

# t: text, a number: the side of an image's grid
SHAPES = ("ttt 4 tttt", "tt 2 t 3 tt", "tttttt", "t 3 t", "ttt 2", "t 2 ttttt", "t 4 t")
GENERATED = 3


@dataclass
class Batch:
    """Random embeddings of prompts of these shapes, padded on the left, and of tokens that follow them."""

    shapes: tuple[str, ...] = SHAPES
    prompts: list = field(default_factory=list)  # (embeds (S, D), visual (S,), sides of the images)
    following: list = field(default_factory=list)  # (GENERATED, D)

    def __post_init__(self):
        for shape in self.shapes:
            generator = torch.Generator().manual_seed(sum(shape.encode()) * 7 + len(shape))
            visual, sides = [], []
            for piece in shape.split():
                side = int(piece) if piece.isdigit() else 0
                visual += [True] * side**2 if side else [False] * len(piece)
                sides += [side] if side else []
            states = torch.randn(len(visual) + GENERATED, 64, generator=generator)
            self.prompts.append((states[:-GENERATED], torch.tensor(visual), sides))
            self.following.append(states[-GENERATED:])

    def padded(self):
        """(B, S, D) embeddings, (B, S) mask, (B, S) visual mask."""
        longest = max(len(visual) for _, visual, _ in self.prompts)
        embeds = torch.zeros(len(self.prompts), longest, 64)
        mask, visual_mask = (torch.zeros(len(self.prompts), longest, dtype=torch.bool) for _ in range(2))
        for i, (states, visual, _) in enumerate(self.prompts):
            embeds[i, -len(states) :], visual_mask[i, -len(states) :], mask[i, -len(states) :] = (
                states,
                visual,
                True,
            )
        return embeds, mask, visual_mask


@pytest.fixture(scope="module")
def batch():
    return Batch()


@torch.no_grad()
def run(model, policy, batch):
    """States of each prompt's text tokens, states of the tokens that follow, trace and cache."""
    decoder = model.model.language_model
    embeds, mask, visual = batch.padded()
    with attach(model, policy) as handle:
        out = decoder(inputs_embeds=embeds, attention_mask=mask, visual_mask=visual, use_cache=True)
        kv_lengths = out.past_key_values.kv_lengths
        steps, cache = [], out.past_key_values
        for step in zip(*batch.following, strict=True):
            after = decoder(inputs_embeds=torch.stack(step)[:, None], past_key_values=cache)
            steps.append(after.last_hidden_state[:, 0])
    texts = [
        states[real & ~image] for states, real, image in zip(out.last_hidden_state, mask, visual, strict=True)
    ]
    return texts, torch.stack(steps, 1), handle.traces[0], kv_lengths


@dataclass
class Case:
    policy: object
    rule: object  # sides of the images -> rule
    model: object = None


CASES = {
    "vtw": Case(VTW(2), lambda sides: plain.withdraw(2)),
    "fastv": Case(FastV(k=2, r=0.5), lambda sides: plain.fastv(2, 0.5)),
    "fastv drops nearly all": Case(FastV(k=1, r=0.9), lambda sides: plain.fastv(1, 0.9)),
    "fastv drops all": Case(FastV(k=3, r=1.0), lambda sides: plain.fastv(3, 1.0)),
    "pyramiddrop": Case(PyramidDrop(stages=4, ratio=0.5), lambda sides: plain.pyramid([0, 1, 2], 0.5)),
    "pyramiddrop, two stages": Case(PyramidDrop(stages=2, ratio=0.3), lambda sides: plain.pyramid([1], 0.3)),
    "tome": Case(ToMe(r=2), lambda sides: plain.tome(2, range(LAYERS - 1))),
    "tome merges all it can": Case(
        ToMe(r=99, first_layer=1, last_layer=2), lambda sides: plain.tome(99, [1, 2])
    ),
    "pooling": Case(Pooling(2), lambda sides: plain.pool(2, sides)),
    "stability": Case(
        StabilityExit(start=0, jump=0.98, size=0.25, still=0.9, patience=2),
        lambda sides: plain.stability(0, 0.98, 0.25, 0.9, 2),
    ),
    "stability, exit alone": Case(
        StabilityExit(start=1, jump=0.99, size=0.0, still=0.95, patience=1),
        lambda sides: plain.stability(1, 0.99, 0.0, 0.95, 1),
    ),
    "fastv and an exit": Case(
        Combine((FastV(k=1), FixedExit(2))),
        lambda sides: plain.together(plain.fastv(1, 0.5), plain.withdraw(3)),
    ),
    "tome and fastv after the same layer": Case(
        Combine((ToMe(r=2, last_layer=1), FastV(k=2))),
        lambda sides: plain.together(plain.tome(2, [0, 1]), plain.fastv(2, 0.5)),
    ),
    "pooling and stability": Case(
        Combine((Pooling(2), StabilityExit(start=0, jump=0.98, size=0.25, still=0.9, patience=1))),
        lambda sides: plain.together(plain.pool(2, sides), plain.stability(0, 0.98, 0.25, 0.9, 1)),
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_equals_the_plain_rule(hf_llava, batch, name):
    case = CASES[name]
    texts, steps, trace, kv_lengths = run(hf_llava, case.policy, batch)
    assert kv_lengths == trace.tokens_per_layer.tolist()
    for i, ((embeds, visual, sides), following) in enumerate(
        zip(batch.prompts, batch.following, strict=True)
    ):
        visual = torch.cat([visual, torch.zeros(GENERATED, dtype=torch.bool)])
        expected = plain.PlainRun(
            hf_llava.model.language_model, torch.cat([embeds, following]), visual, GENERATED
        )
        states = expected.run(case.rule(sides))
        assert trace.tokens_per_layer[:, i].tolist() == expected.tokens
        assert trace.exit_layers[i] == expected.exit
        own = states[:-GENERATED][~visual[:-GENERATED]]
        torch.testing.assert_close(texts[i], own, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(steps[i], states[-GENERATED:], rtol=1e-4, atol=1e-4)
    changed = trace.tokens_per_layer[-1] < torch.tensor(trace.prompt_tokens)
    assert changed.tolist() != [False] * len(batch.prompts) and not changed[2] and not changed[4]


@torch.no_grad()
@pytest.mark.parametrize("name", [*CASES, "random", "gates and fastv"])
def test_batch_equals_one_by_one(hf_llava, batch, gates, name):
    more = {"random": RandomDrop(r=0.4), "gates and fastv": Combine((LearnedExit(gates), FastV(k=2)))}
    policy = more[name] if name in more else CASES[name].policy
    texts, steps, trace, kv_lengths = run(hf_llava, policy, batch)
    for i, shape in enumerate(SHAPES):
        one_texts, one_steps, one, one_lengths = run(hf_llava, policy, Batch((shape,)))
        torch.testing.assert_close(texts[i], one_texts[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(steps[i], one_steps[0], rtol=1e-4, atol=1e-4)
        assert trace.exit_layers[i] == one.exit_layers[0]
        assert torch.equal(trace.gate_flops[:, i], one.gate_flops[:, 0])
        assert [layer[i] for layer in kv_lengths] == [length for [length] in one_lengths]


@torch.no_grad()
@pytest.mark.parametrize(
    "policy",
    [
        FastV(r=0),
        ToMe(r=0),
        Pooling(1),
        RandomDrop(r=0),
        PyramidDrop(ratio=1),
        FixedExit(LAYERS - 1),
        StabilityExit(start=0, jump=0.0, still=1.0),
        Combine((FastV(r=0), ToMe(r=0))),
    ],
    ids=repr,
)
def test_nothing_to_do_is_the_plain_model_bit_for_bit(hf_llava, batch, policy):
    plainly, with_policy = run(hf_llava, NoExit(), batch), run(hf_llava, policy, batch)
    assert all(torch.equal(one, other) for one, other in zip(plainly[0], with_policy[0], strict=True))
    if not isinstance(policy, FixedExit):
        assert not with_policy[2].gate_flops.any() or isinstance(policy, StabilityExit)
        assert with_policy[2].exit_layers == [None] * len(SHAPES)
    assert torch.equal(plainly[1], with_policy[1]) and plainly[3] == with_policy[3]


@dataclass(eq=False)
class Watched(Policy):
    """A policy that forwards to another and checks each of its edits."""

    policy: object
    edits: int = 0
    rows: dict = field(default_factory=dict)

    def check(self, num_layers, hidden_size):
        self.policy.check(num_layers, hidden_size)

    def enter(self, row, trace):
        return self._compare(-1, row, self.policy.enter(row, trace))

    def observes(self, layer, layout):
        return self.policy.observes(layer, layout)

    def observe(self, layer, inputs, trace):
        self.policy.observe(layer, inputs, trace)

    def edit(self, layer, row, trace):
        return self._compare(layer, row, self.policy.edit(layer, row, trace))

    def _compare(self, layer, before, after):
        old, new = before.layout, after.layout
        self.rows[layer] = new
        self.edits += new is not old
        assert torch.equal(before.hidden[0, ~old.is_visual], after.hidden[0, ~new.is_visual])
        assert torch.equal(old.slots[~old.is_visual], new.slots[~new.is_visual])
        assert sum(new.lengths) == after.hidden.shape[1] and new.samples == old.samples
        where = torch.searchsorted(old.slots, new.slots)  # slots ascend: no test here forks
        for name in ("slots", "positions", "is_visual"):
            assert torch.equal(getattr(old, name)[where], getattr(new, name))
        for start, length, count in zip(new.starts, new.lengths, new.visual, strict=True):
            own = slice(start, start + length)
            assert (new.positions[own].diff() > 0).all() and new.is_visual[own].sum() == count
        return after


@pytest.mark.parametrize("name", [*CASES, "random"])
def test_text_order_and_positions_stay(hf_llava, batch, name):
    watched = Watched(RandomDrop(k=1) if name == "random" else CASES[name].policy)
    run(hf_llava, watched, batch)
    assert watched.edits


@pytest.mark.parametrize("k", [0, 2])
def test_random_drop_is_masking_of_a_draw(hf_llava, batch, k):
    """The tokens that the policy kept, masked in the plain run; another seed keeps others."""
    watched = Watched(RandomDrop(k=k, r=0.5))
    texts, steps, trace, _ = run(hf_llava, watched, batch)
    columns = batch.padded()[0].shape[1]
    kept = set(watched.rows[k - 1].slots.tolist())
    for i, ((embeds, visual, _), following) in enumerate(zip(batch.prompts, batch.following, strict=True)):
        first = i * columns + columns - len(embeds)

        def rule(layer, run, first=first):
            if layer == k - 1:
                run.drop([token for token in run.images() if first + token not in kept])

        visual = torch.cat([visual, torch.zeros(GENERATED, dtype=torch.bool)])
        expected = plain.PlainRun(
            hf_llava.model.language_model, torch.cat([embeds, following]), visual, GENERATED
        )
        with torch.no_grad():
            states = expected.run(rule)
        torch.testing.assert_close(steps[i], states[-GENERATED:], rtol=1e-4, atol=1e-4)
        assert trace.tokens_per_layer[:, i].tolist() == expected.tokens
        left = len(embeds) - expected.tokens[-1]
        assert left == (0 if i in (2, 4) else (int(visual.sum()) + 1) // 2)
    other = Watched(RandomDrop(k=k, r=0.5, seed=1))
    run(hf_llava, other, batch)
    assert set(other.rows[k - 1].slots.tolist()) != kept


def test_pooling_asks_for_the_grid_where_images_touch(hf_llava):
    touching = Batch(("t 2 2 t",))
    with pytest.raises(ValueError, match="set Pooling's grid"):
        run(hf_llava, Pooling(2), touching)
    with pytest.raises(ValueError, match="3 x 3"):
        run(hf_llava, Pooling(2, grid=3), touching)
    _, _, trace, _ = run(hf_llava, Pooling(2, grid=2), touching)
    assert trace.tokens_per_layer[:, 0].tolist() == [4] * LAYERS and trace.prompt_tokens == [10]


def test_scores_are_counted(hf_llava):
    """Prompt t16t: 18 tokens to the last text token; 4 query heads of width 16; 2 FLOPs a multiply-accumulate."""
    one = Batch(("t 4 t",))
    width = 64
    flops = {
        FastV(k=2): [0, 2 * 18 * width, 0, 0],
        PyramidDrop(): [2 * 18 * width, 2 * 10 * width, 2 * 6 * width, 0],
        ToMe(r=2): [2 * 8 * 8 * 16, 2 * 7 * 7 * 16, 2 * 6 * 6 * 16, 0],
        StabilityExit(start=2, jump=0.0): [0, 0, 4 * width * (18 + 16), 4 * width * (18 + 16)],
        VTW(2): [0] * LAYERS,
    }
    for policy, expected in flops.items():
        assert run(hf_llava, policy, one)[2].gate_flops[:, 0].tolist() == expected, policy


@torch.no_grad()
def test_merged_tokens_fall_back_to_sdpa_under_flash(hf_llava, batch, monkeypatch):
    """The kernel takes no bias for each key: only the first layer, before anything is merged, may use it."""
    import sys
    from types import SimpleNamespace

    from tests.conftest import tiny_hf_llava

    calls = []

    def varlen(q, k, v, *, cu_seqlens_q, softmax_scale, **settings):
        calls.append(len(q))
        parts = []
        for start, stop in cu_seqlens_q.unfold(0, 2, 1).tolist():
            rows = (states[start:stop].transpose(0, 1)[None] for states in (q, k, v))
            parts.append(sdpa.eager(*rows, None, softmax_scale)[0].transpose(0, 1))
        return torch.cat(parts)

    def with_kvcache(q, k, v, *, cache_seqlens, softmax_scale):
        mask = None if cache_seqlens is None else torch.arange(k.shape[1]) < cache_seqlens[:, None]
        rows = (states.transpose(1, 2) for states in (q, k, v))
        mask = None if mask is None else mask[:, None, None]
        return sdpa.eager(*rows, mask, softmax_scale).transpose(1, 2)

    package = SimpleNamespace(flash_attn_varlen_func=varlen, flash_attn_with_kvcache=with_kvcache)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    model = tiny_hf_llava()
    model.model.language_model.config._attn_implementation_internal = "flash_attention_2"
    for one, other in zip(run(model, ToMe(r=2), batch)[1], run(hf_llava, ToMe(r=2), batch)[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert len(calls) == 1  # prefill, layer 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["tome", "fastv", "stability"])
def test_eager_kernel_agrees(hf_llava, batch, name):
    from tests.conftest import tiny_hf_llava

    other = tiny_hf_llava()
    other.set_attn_implementation("eager")
    for one, two in zip(
        run(hf_llava, CASES[name].policy, batch)[1], run(other, CASES[name].policy, batch)[1], strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("policy", [FastV(), ToMe(r=1), Pooling(2, grid=2)], ids=repr)
def test_beams_and_generate(hf_llava, prompts, policy):
    """``generate`` with beams over the shrunken cache: a batch answers as each prompt alone."""
    from tests.decoding.test_equalities import new_tokens, same_until_end

    with attach(hf_llava, policy):
        beams = new_tokens("hf_llava", hf_llava, prompts, num_beams=3)
        for i in (0, 3, 5):
            assert same_until_end(beams[i], new_tokens("hf_llava", hf_llava, prompts[i], num_beams=3)[0])


@torch.no_grad()
def test_merged_tokens_stay_weighted_in_a_second_turn(hf_llava, batch):
    """Tokens fed in one piece after the prompt equal the same tokens fed one at a time."""
    decoder = hf_llava.model.language_model
    embeds, mask, visual = batch.padded()
    with attach(hf_llava, ToMe(r=2)):
        out = decoder(inputs_embeds=embeds, attention_mask=mask, visual_mask=visual, use_cache=True)
        whole = decoder(inputs_embeds=torch.stack(batch.following), past_key_values=out.past_key_values)
    steps = run(hf_llava, ToMe(r=2), batch)[1]
    torch.testing.assert_close(whole.last_hidden_state, steps, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_image_in_a_second_turn_is_merged_as_in_the_first(hf_llava):
    """Text first and the image in a later turn equal both in one turn: merging looks at visual tokens alone."""
    one = Batch(("ttt 4 tttt",))
    embeds, _, visual = one.padded()
    states, steps, _, lengths = run(hf_llava, ToMe(r=2), one)
    decoder = hf_llava.model.language_model
    with attach(hf_llava, ToMe(r=2)):
        cache = decoder(inputs_embeds=embeds[:, :3], use_cache=True).past_key_values
        turn = decoder(inputs_embeds=embeds[:, 3:], visual_mask=visual[:, 3:], past_key_values=cache)
        assert turn.past_key_values.kv_lengths == lengths
        after = decoder(inputs_embeds=one.following[0][None], past_key_values=turn.past_key_values)
    torch.testing.assert_close(turn.last_hidden_state[:, -4:], states[0][None, -4:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.last_hidden_state, steps, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_vtw_search(hf_llava, prompts):
    inputs = prompts.hf()
    with attach(hf_llava, NoExit()) as handle:
        found = exit_divergences(handle, lambda: hf_llava(**inputs).logits[:, -1], [1, 2, 3])
        assert handle.policy == NoExit() and not handle.traces
        full = hf_llava(**inputs).logits[:, -1].double().softmax(-1)
        handle.policy = FixedExit(1)
        left = hf_llava(**inputs).logits[:, -1].double().softmax(-1)
    expected = (left * (left.log() - full.log())).sum(-1)[[0, 1, 2, 4, 5, 6, 7]]  # prompt 3 has no image
    torch.testing.assert_close(found[1], expected)
    divergences = torch.tensor([[0.5, 0.1], [0.002, 0.003], [0.0, 0.001]])
    assert choose_layer(divergences, [5, 6, 7]) == 6 and choose_layer(divergences, [5, 6, 7], 0.001) == 7
    with pytest.raises(ValueError, match="smallest is 0.0005"):
        choose_layer(divergences, [5, 6, 7], 0.0001)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda: FastV(r=1.5), r"r must lie in \[0, 1\]"),
        (lambda: RandomDrop(k=0, r=1.0), r"\[0, 1\)"),
        (lambda: ToMe(r=-1), "not be negative"),
        (lambda: Pooling(0), "positive"),
        (lambda: PyramidDrop(stages=1), "2 or more"),
        (lambda: StabilityExit(patience=0), "patience"),
        (lambda: Combine(()), "one or more"),
        (lambda: FastV(k=0).check(4, 64), r"1\.\.3"),
        (lambda: VTW(4).check(4, 64), r"1\.\.3"),
        (lambda: RandomDrop(k=4).check(4, 64), r"0\.\.3"),
        (lambda: PyramidDrop(stages=5).check(4, 64), "do not fit"),
        (lambda: ToMe(first_layer=3).check(4, 64), "ascending"),
        (lambda: StabilityExit(start=4).check(4, 64), r"0\.\.3"),
        (lambda: Combine((FastV(k=4),)).check(4, 64), r"1\.\.3"),
    ],
)
def test_what_makes_no_sense_is_said(policy, message):
    with pytest.raises(ValueError, match=message):
        policy()
