"""Layers replayed from graphs, with gates inside, give what launching every kernel gives.

A CPU has no CUDA graphs; :mod:`tests.fixtures.tape` stands in for them. Kernels for sequences of any lengths need
CUDA as well: :class:`Varlen` stands in for those.
"""

from __future__ import annotations

import gc
import threading
from functools import partial
from weakref import ref

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from dyvte import ExitGates, FixedExit, LearnedExit, NoExit, attach
from dyvte.decoding.attention import varlen
from dyvte.decoding.graphs import Graphs
from dyvte.decoding.graphs import compiled as compiled_file
from dyvte.decoding.graphs import graphs as graphs_file
from dyvte.decoding.graphs import rows as rows_file
from dyvte.decoding.policy import Policy
from dyvte.reduction import Combine, FastV, ToMe
from dyvte.study.attention_stats import AttentionStats
from tests.conftest import LAYERS, MIXED, Prompts, tiny_hf_llava
from tests.fixtures.tape import record


class Varlen:
    """A variable-length kernel by plain products, which reads its offsets where they are."""

    def attend(self, query, key, value, offsets, longest, scaling):
        owners = [
            torch.bucketize(torch.arange(len(part)), of[1:].long(), right=True)
            for part, of in zip((query, key), offsets, strict=True)
        ]
        at = torch.arange(len(query))
        seen = (owners[0][:, None] == owners[1]) & (at[:, None] >= at)
        repeats = query.shape[1] // key.shape[1]
        spoiled = ((owners[0][:, None] == owners[1]) & value.isnan().any(2).any(1)).any(
            1
        )  # 0 * NaN, as on a card
        key, value = (part.repeat_interleave(repeats, 1).nan_to_num() for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) * scaling
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", weights, value)
        return out.masked_fill(spoiled[:, None, None], torch.nan)


@pytest.fixture(params=["sdpa", "eager", "torch_varlen"])
def model(request, monkeypatch):
    """transformers' class with each way to attend."""
    monkeypatch.setitem(varlen.KERNELS, "torch_varlen", Varlen)
    model = tiny_hf_llava()
    model.model.language_model.config._attn_implementation_internal = request.param
    return model


BATCHES = {
    "equal lengths": Prompts(MIXED[0], MIXED[0], MIXED[0]),
    "mixed lengths": Prompts(*MIXED),
    "one": Prompts(MIXED[0]),
    "several images": Prompts(MIXED[1], MIXED[5]),
    "one of several images": Prompts(MIXED[5]),
    "no image": Prompts(MIXED[3]),
    "two lengths": Prompts(MIXED[2], MIXED[5]),
}


def prefill(model, policy, inputs, graphs=None):
    """Logits, trace and cache of a prefill, as comparable parts."""
    with torch.no_grad(), attach(model, policy, graphs) as handle:
        out = model(**inputs, use_cache=True)
    trace, cache = handle.traces[-1], out.past_key_values
    numbers = [out.logits, trace.exit_probabilities]
    for layer in cache.layers:
        numbers += [layer.keys, layer.values]
    facts = [trace.exit_layers, trace.tokens_per_layer.tolist(), trace.gate_flops.tolist()]
    facts += [cache.kv_lengths, cache.nbytes, cache.allocated_nbytes, cache.next_positions.tolist()]
    facts += [cache.seen, [report.as_dict()["exit_layer"] for report in trace.report()]]
    return numbers, facts


def check_equal(ours, plain):
    for one, other in zip(ours[0], plain[0], strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    assert ours[1] == plain[1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch", BATCHES)
def test_recorded_prefill_equals_prefill(model, gates, batch, side):
    """The first meeting with a shape runs as usual, the second one records, the third one replays."""
    inputs, graphs = BATCHES[batch].hf(side), Graphs(record)
    plain = prefill(model, LearnedExit(gates), inputs)
    counts = []
    for _ in range(4):
        check_equal(prefill(model, LearnedExit(gates), inputs, graphs), plain)
        counts.append((graphs.recorded, graphs.replayed))
    assert counts[-1][0] == counts[-2][0] >= LAYERS
    assert counts[-1][1] == counts[-2][1] + LAYERS


def test_exits_of_these_batches_differ(hf_llava, gates):
    """Else the tests above would compare little."""
    found = {name: prefill(hf_llava, LearnedExit(gates), batch.hf())[1][0] for name, batch in BATCHES.items()}
    assert len(set(found["mixed lengths"])) > 2 and len(set(found["equal lengths"])) > 1
    assert set(found["two lengths"]) != {None} and found["one"] != [None]


@pytest.mark.parametrize(
    "policy",
    [
        NoExit(),
        FixedExit(1),
        FastV(1, 0.5),
        ToMe(1),
        Combine((AttentionStats(), FixedExit(1))),
        Combine((FastV(1, 0.5), FixedExit(2))),
    ],
    ids=str,
)
def test_policies_without_probes_run_between_replays(model, policy):
    graphs = Graphs(record)
    for prompts in (Prompts(*MIXED), Prompts(MIXED[4], MIXED[6])):
        plain = prefill(model, policy, prompts.hf())
        for _ in range(3):
            check_equal(prefill(model, policy, prompts.hf(), graphs), plain)
    observed_or_merged = "AttentionStats" in str(policy) or isinstance(policy, ToMe)  # every layer
    assert (graphs.recorded == 0) == observed_or_merged


def test_probes_of_combined_policies_are_asked_of_the_row_they_saw(model, gates):
    """FastV edits the row after layer 1: the answer for the row before that must not be taken."""
    prompts, graphs = Prompts(*MIXED), Graphs(record)
    for policies in ((FastV(1, 0.5), LearnedExit(gates)), (LearnedExit(gates), FastV(1, 0.5))):
        plain = prefill(model, Combine(policies), prompts.hf())
        for _ in range(3):
            check_equal(prefill(model, Combine(policies), prompts.hf(), graphs), plain)
    assert graphs.replayed > graphs.recorded > 0

    class DropsOne(Policy):
        """An edit that needs no look at attention, so that its layer is replayed."""

        def edit(self, layer, row, trace):
            some = np.flatnonzero(np.arange(len(row.layout.kinds)) != row.layout.last_visual[0])
            return row.select(some) if layer == 1 else row

    torch.manual_seed(5)
    visual = ExitGates(LAYERS, 64, 16, ["mean_visual", "last_visual", "last_text"], gain=5)
    both = Combine((DropsOne(), LearnedExit(visual, threshold=1.0)))
    plain = prefill(model, both, prompts.hf())
    for _ in range(3):
        check_equal(prefill(model, both, prompts.hf(), graphs), plain)


def test_thresholds_and_ranges_of_layers_share_recordings(hf_llava, gates):
    prompts, graphs = Prompts(*MIXED), Graphs(record)
    recorded = []
    for policy in (
        LearnedExit(gates, threshold=1.0),
        LearnedExit(gates, threshold=1.0),
        LearnedExit(gates, threshold=1.0, first_layer=2),
        LearnedExit(gates, threshold=1.0, last_layer=1),
        LearnedExit(gates, threshold=0.9999, first_layer=2),
        LearnedExit(gates, threshold=0.3),
    ):
        plain = prefill(hf_llava, policy, prompts.hf())
        check_equal(prefill(hf_llava, policy, prompts.hf(), graphs), plain)
        recorded.append(graphs.recorded)
    # layers with a probe; then those two that have none; the rows that exits leave came up once only
    assert recorded[:4] == [0, LAYERS, LAYERS + 2, LAYERS + 4]


@pytest.mark.parametrize("states", [["last_text"], ["mean_visual", "last_visual", "mean_text", "last_text"]])
@pytest.mark.parametrize(
    "kind", [{}, {"kind": "shared"}, {"kind": "low_rank", "rank": 4}, {"gated_layers": [1, 3]}]
)
def test_gates_of_every_kind_are_recorded(hf_llava, states, kind):
    torch.manual_seed(5)
    gates, graphs, prompts = (
        ExitGates(LAYERS, 64, 16, states, gain=5, **kind),
        Graphs(record),
        Prompts(*MIXED),
    )
    plain = prefill(hf_llava, LearnedExit(gates), prompts.hf())
    for _ in range(3):
        check_equal(prefill(hf_llava, LearnedExit(gates), prompts.hf(), graphs), plain)
    assert graphs.replayed > graphs.recorded >= LAYERS


def test_gates_that_read_attention_see_it(hf_llava):
    gates, graphs, prompts = (
        ExitGates(LAYERS, 64, 16, ["cross", "last_text"], gain=5),
        Graphs(record),
        Prompts(*MIXED),
    )
    plain = prefill(hf_llava, LearnedExit(gates), prompts.hf())
    for _ in range(3):
        check_equal(prefill(hf_llava, LearnedExit(gates), prompts.hf(), graphs), plain)


def test_replaced_and_changed_gates_are_told_apart(hf_llava, gates):
    """Other gates, and the same ones with other weights in other memory, record their own."""
    prompts, graphs = Prompts(*MIXED), Graphs(record)
    torch.manual_seed(9)
    other = ExitGates(LAYERS, 64, 32, gain=5)
    for each in (gates, other, gates, other, gates):
        plain = prefill(hf_llava, LearnedExit(each), prompts.hf())
        check_equal(prefill(hf_llava, LearnedExit(each), prompts.hf(), graphs), plain)
    for parameter in other.parameters():
        parameter.data = parameter.data.flip(0) * 2
    plain = prefill(hf_llava, LearnedExit(other), prompts.hf())
    for _ in range(3):
        check_equal(prefill(hf_llava, LearnedExit(other), prompts.hf(), graphs), plain)


def test_rows_of_other_lengths_share_a_bucket(model, gates):
    """Three samples, other lengths, up to 32 tokens in all: recorded for the second batch, replayed for the third."""
    never = LearnedExit(gates, threshold=1.0)
    batches = [Prompts(MIXED[0], MIXED[2]), Prompts(MIXED[6], MIXED[7]), Prompts(MIXED[7], MIXED[4])]
    graphs, recorded = Graphs(record), []
    for prompts in batches:
        check_equal(prefill(model, never, prompts.hf(), graphs), prefill(model, never, prompts.hf()))
        recorded.append((graphs.recorded, graphs.replayed))
    assert recorded == [(0, 0), (LAYERS, LAYERS), (LAYERS, 2 * LAYERS)]


def test_the_filler_never_leaks(model, gates, monkeypatch):
    """With NaN in all static buffers behind the row's own tokens, results are the same."""
    graphs, policy = Graphs(record), LearnedExit(gates)
    plain_load = rows_file.Bucket.load

    def load(bucket, plain, row, probes):
        out = plain_load(bucket, plain, row, probes)
        for buffer in (bucket.hidden, *(part for rope in bucket._ropes.values() for part in rope)):
            buffer[:, row.hidden.shape[1] :] = torch.nan
        return out

    monkeypatch.setattr(rows_file.Bucket, "load", load)
    for prompts in BATCHES.values():
        plain = prefill(model, policy, prompts.hf())
        for _ in range(3):
            check_equal(prefill(model, policy, prompts.hf(), graphs), plain)
    assert graphs.replayed > graphs.recorded > 0


def test_a_nan_state_stays_in_its_sample(hf_llava, gates):
    """Its gate never fires; the other samples' gates do what they did."""
    prompts, graphs = Prompts(MIXED[0], MIXED[2], MIXED[4]), Graphs(record)
    before = prefill(hf_llava, LearnedExit(gates), prompts.hf())
    inputs = prompts.hf()
    inputs["pixel_values"] = inputs["pixel_values"].clone()
    inputs["pixel_values"][0] = torch.nan
    plain = prefill(hf_llava, LearnedExit(gates), inputs)
    for _ in range(3):
        check_equal(prefill(hf_llava, LearnedExit(gates), inputs, graphs), plain)
    assert plain[1][0] == [None, *before[1][0][1:]]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False, "max_new_tokens": 3}])
@pytest.mark.parametrize("batch", BATCHES)
def test_generation_with_recorded_prefill_equals_generation(hf_llava, gates, batch, options):
    inputs, graphs = BATCHES[batch].hf(), Graphs(record)
    run = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, **options}
    answers = []
    for with_graphs in (None, graphs, graphs, graphs):
        with torch.no_grad(), attach(hf_llava, LearnedExit(gates), with_graphs):
            answers.append(hf_llava.generate(**inputs, **run))
    assert all(torch.equal(answer, answers[0]) for answer in answers) and graphs.replayed > graphs.recorded


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_a_second_turn_of_a_chat_continues_the_cache(gates, kv_heads):
    model, graphs, prompts = tiny_hf_llava(kv_heads=kv_heads), Graphs(record), Prompts(*MIXED)
    turns = []
    for with_graphs in (None, graphs, graphs, graphs):
        with attach(model, LearnedExit(gates), with_graphs):
            inputs = prompts.hf()
            cache = model(**inputs, use_cache=True).past_key_values
            more = torch.full((len(prompts), 3), 7)
            mask = torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1)
            logits = [model(input_ids=more, attention_mask=mask, past_key_values=cache).logits]
            for token in (5, 6):
                one = torch.full((len(prompts), 1), token)
                logits.append(model(input_ids=one, past_key_values=cache).logits)
        turns.append(torch.cat(logits, 1))
    for ours in turns[1:]:
        torch.testing.assert_close(ours, turns[0])
    assert graphs.replayed > graphs.recorded


def test_other_classes_modes_and_models_use_the_same_graphs(llava, hf_llava, gates, prompts):
    """This project's class beside transformers', after detaching and attaching, inside and outside inference mode."""
    graphs, policy = Graphs(record), LearnedExit(gates)
    with torch.no_grad(), attach(llava, policy):
        plain = llava(**prompts.ours(), use_cache=True).logits
    for at in range(6):
        mode = torch.inference_mode if at % 2 else torch.no_grad
        with mode(), attach(llava, policy, graphs):
            torch.testing.assert_close(llava(**prompts.ours(), use_cache=True).logits, plain)
        check_equal(prefill(hf_llava, policy, prompts.hf(), graphs), prefill(hf_llava, policy, prompts.hf()))
    assert graphs.replayed > graphs.recorded > LAYERS


def test_gradients_are_not_replayed(gates, prompts):
    model, graphs = tiny_hf_llava(), Graphs(record)
    with attach(model, LearnedExit(gates), graphs):
        for _ in range(3):
            model(**prompts.hf(), use_cache=False).logits.sum().backward()
    assert graphs.recorded == 0 and model.lm_head.weight.grad is not None


@pytest.mark.parametrize("change", ["data", "parameter", "module"])
def test_weights_that_moved_or_were_replaced_are_recorded_anew(gates, prompts, change):
    model, graphs, policy = tiny_hf_llava(), Graphs(record), LearnedExit(gates)
    for _ in range(3):
        prefill(model, policy, prompts.hf(), graphs)
    layer = model.model.language_model.layers[2]
    old = layer.mlp.up_proj
    if change == "data":
        old.weight.data = old.weight.data * 1.5
    elif change == "parameter":
        old.weight = torch.nn.Parameter(old.weight.detach() * 1.5)
    else:
        layer.mlp.up_proj = torch.nn.Linear(64, 128, bias=False)
    plain = prefill(model, policy, prompts.hf())
    for _ in range(3):
        check_equal(prefill(model, policy, prompts.hf(), graphs), plain)


@torch.no_grad()
def test_many_lengths_keep_to_the_budget(hf_llava):
    """Prompts of ever more tokens: the least recently used buckets are given up, and results stay right."""
    longest = 512
    token = 2 * LAYERS * 2 * 16 * 4  # keys and values
    graphs = Graphs(record, most_bytes=longest * token + 4 * rows_file.GRAPH_BYTES * LAYERS)
    policy = NoExit()
    torch.manual_seed(0)
    lengths = [30, 62, 94, 30, 62, 200, 400, 30, 500, 62, *torch.randint(4, longest, (20,)).tolist()]
    held = []
    for length in lengths:
        inputs = {"input_ids": torch.randint(3, 190, (1, length))}
        plain = prefill(hf_llava, policy, inputs)
        for _ in range(2):
            check_equal(prefill(hf_llava, policy, inputs, graphs), plain)
            assert graphs.nbytes <= graphs.most_bytes
            held.append(graphs.nbytes)
    assert max(held) > graphs.most_bytes // 2
    graphs.close()
    assert graphs.nbytes == 0


def test_rows_whose_keys_and_values_pass_the_budget_run_as_usual(hf_llava):
    graphs = Graphs(record, most_bytes=50_000)
    inputs = {"input_ids": torch.randint(3, 190, (1, 90))}
    plain = prefill(hf_llava, NoExit(), inputs)
    for _ in range(3):
        check_equal(prefill(hf_llava, NoExit(), inputs, graphs), plain)
    assert graphs.recorded == 0 and graphs.nbytes <= 50_000


def test_a_shape_is_recorded_after_as_many_rows_as_asked_for(hf_llava):
    """Also one that was given up."""
    short, long = ({"input_ids": torch.randint(3, 190, (1, length))} for length in (20, 90))
    graphs, counts = Graphs(record, after=3), []
    for _ in range(5):
        prefill(hf_llava, NoExit(), short, graphs)
        counts.append(graphs.recorded)
    assert counts == [0, 0, 0, LAYERS, LAYERS]
    graphs.most_bytes = graphs.nbytes * 5 // 4  # room for one bucket
    for inputs in (long, short):
        recorded, counts = graphs.recorded, []
        for _ in range(4):
            prefill(hf_llava, NoExit(), inputs, graphs)
            counts.append(graphs.recorded - recorded)
        assert counts == [0, 0, 0, LAYERS]


def test_long_rows_run_as_usual(hf_llava, gates, monkeypatch, prompts):
    monkeypatch.setattr(graphs_file, "MOST_TOKENS", 60)
    graphs = Graphs(record)
    for _ in range(3):
        prefill(hf_llava, NoExit(), prompts.hf(), graphs)  # 72 tokens
    assert graphs.recorded == 0
    for _ in range(3):
        prefill(hf_llava, FixedExit(0), prompts.hf(), graphs)
    assert graphs.recorded == LAYERS - 1


def test_a_second_thread_runs_as_usual_meanwhile(hf_llava, gates, prompts):
    """Static buffers serve one prefill at a time."""
    graphs, inputs, never, results = Graphs(record), prompts.hf(), LearnedExit(gates, threshold=1.0), []
    plain = prefill(hf_llava, never, inputs)

    class Meanwhile(Policy):
        """Lets another thread run a prefill between two layers of this one."""

        def edit(self, layer, row, trace):
            if layer == 1 and threading.current_thread() is threading.main_thread():
                other = threading.Thread(target=run)
                other.start()
                other.join()
            return row

    @torch.no_grad()
    def run():
        before = graphs.replayed
        results.append((hf_llava(**inputs, use_cache=True).logits, graphs.replayed - before))

    for _ in range(3):
        check_equal(prefill(hf_llava, Combine((never, Meanwhile())), inputs, graphs), plain)
    assert len(results) == 3 and graphs.replayed == 2 * LAYERS
    for logits, replayed in results:
        torch.testing.assert_close(logits, plain[0][0])
        assert replayed == 0


def test_an_interrupted_prefill_leaves_the_graphs_usable(hf_llava, gates, prompts):
    graphs, inputs, policy = Graphs(record), prompts.hf(), LearnedExit(gates)

    class Breaks(Policy):
        def edit(self, layer, row, trace):
            raise KeyboardInterrupt

    plain = prefill(hf_llava, policy, inputs)
    for _ in range(2):
        prefill(hf_llava, policy, inputs, graphs)
    before = graphs.replayed
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prefill(hf_llava, Combine((policy, Breaks())), inputs, graphs)
    check_equal(prefill(hf_llava, policy, inputs, graphs), plain)
    assert graphs.replayed > before + LAYERS


class Launches(TorchDispatchMode):
    """Counts what would be launched one by one on a device: all but views, and copies on the host."""

    def __init__(self):
        super().__init__()
        self.between = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returns = func._schema.returns
        if not any(value.alias_info is not None and not value.alias_info.is_write for value in returns):
            self.between[-1].append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_nothing_is_launched_between_two_replays(hf_llava, gates):
    """But for copying the answers within the host's memory."""
    policy, inputs, launches = LearnedExit(gates, threshold=1.0), Prompts(*MIXED).hf(), Launches()

    def counted(work):
        replay = record(work)

        def play():
            with torch.utils._python_dispatch._disable_current_modes():
                replay()
            launches.between.append([])

        return play

    graphs = Graphs(counted)
    for _ in range(2):
        prefill(hf_llava, policy, inputs, graphs)
    launches.between = [[]]
    with torch.no_grad(), attach(hf_llava, policy, graphs), launches:
        hf_llava(**inputs, use_cache=True)
    before, *between, after = launches.between
    assert len(between) == LAYERS - 1 and before and after
    assert {name for some in between for name in some} == {"aten::clone"}


def test_nothing_is_kept_of_a_model_that_is_gone(gates):
    model, graphs = tiny_hf_llava(), Graphs(record)
    for _ in range(3):
        prefill(model, LearnedExit(gates), Prompts(*MIXED).hf(), graphs)
    assert graphs.nbytes > 0
    gone = ref(model.model.language_model)
    del model
    gc.collect()
    assert gone() is None and graphs.nbytes == 0


def test_all_layers_of_a_shape_share_one_compilation(gates, monkeypatch):
    """Compiled layers give what layers give, and four of them are compiled as often as one."""
    torch._dynamo.reset()
    found = []
    for depth in (1, LAYERS):
        counter = CompileCounterWithBackend("aot_eager")
        compile_layers = partial(compiled_file.compiled, backend=counter)
        monkeypatch.setattr(graphs_file, "compiled", compile_layers)
        model, graphs = tiny_hf_llava(), Graphs(record, compile=True)
        decoder = model.model.language_model
        decoder.layers, decoder.config.num_hidden_layers = decoder.layers[:depth], depth
        policy = NoExit() if depth == 1 else LearnedExit(gates, threshold=1.0)
        for prompts in (Prompts(MIXED[0]), Prompts(*MIXED)):
            plain = prefill(model, policy, prompts.hf())
            for _ in range(3):
                check_equal(prefill(model, policy, prompts.hf(), graphs), plain)
        assert graphs.recorded == 2 * depth
        found.append(counter.frame_count)
        torch._dynamo.reset()
    assert found[0] == found[1] > 0
