"""Recorded decoding steps give what launching every kernel gives, and how work is recorded on CUDA.

A CPU has no CUDA graphs; :mod:`tests.fixtures.tape` stands in for them.
"""

from __future__ import annotations

import gc
from weakref import WeakSet, ref

import pytest
import torch

from dyvte import LearnedExit, NoExit, attach
from dyvte.decoding.cache import buffer
from dyvte.decoding.graphs import CudaGraphs, Graphs
from dyvte.reduction import ToMe
from tests.conftest import MIXED, Prompts
from tests.fixtures.tape import record


@pytest.fixture
def little_room(monkeypatch):
    """Rooms fill, and graphs end, after a few tokens."""
    monkeypatch.setattr(buffer, "GROWTH", 5)


def generated(model, policy, prompts, graphs=None, **options):
    """New tokens of each prompt, and the handle."""
    inputs = prompts.hf()
    run = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": None, **options}
    with torch.no_grad(), attach(model, policy, graphs) as handle:
        return model.generate(**inputs, **run)[:, inputs["input_ids"].shape[1] :], handle


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False, "max_new_tokens": 3}])
@pytest.mark.parametrize("prompts", [Prompts(*MIXED), Prompts(MIXED[0]), Prompts(MIXED[3])])
def test_generation_with_graphs_equals_generation_without(hf_llava, gates, little_room, prompts, options):
    graphs = Graphs(record)
    plain, without = generated(hf_llava, LearnedExit(gates), prompts, **options)
    for _ in range(3):  # the second one meets known shapes, the third one replays
        tokens, handle = generated(hf_llava, LearnedExit(gates), prompts, graphs, **options)
        assert torch.equal(tokens, plain)
        assert handle.traces[-1].exit_layers == without.traces[-1].exit_layers
        assert torch.equal(handle.traces[-1].tokens_per_layer, without.traces[-1].tokens_per_layer)
    if not options:
        assert graphs.recorded > 3 and graphs.replayed > 2 * graphs.recorded


def test_steps_after_merging_are_recorded_too(hf_llava, little_room):
    """Merged tokens leave a bias for each key in the cache, which a step writes as well."""
    graphs, prompts = Graphs(record), Prompts(MIXED[0], MIXED[1], MIXED[5])
    plain, _ = generated(hf_llava, ToMe(1), prompts)
    tokens, _ = generated(hf_llava, ToMe(1), prompts, graphs)
    assert torch.equal(tokens, plain) and graphs.replayed > graphs.recorded > 0


@torch.no_grad()
@pytest.mark.parametrize("kv_lengths_differ", [False, True])
def test_steps_leave_the_same_cache_and_logits(hf_llava, gates, little_room, kv_lengths_differ):
    prompts = Prompts(*MIXED) if kv_lengths_differ else Prompts(MIXED[0], MIXED[0], MIXED[0])
    runs = []
    for graphs in (None, Graphs(record)):
        with attach(hf_llava, LearnedExit(gates), graphs) as handle:
            out = hf_llava(**prompts.hf(), use_cache=True)
            cache, logits = out.past_key_values, []
            for step in range(20):
                if step == 12:
                    cache.crop(-2)
                handle.graphs = (
                    None if step == 12 else graphs
                )  # the cache changes without the graphs' knowledge
                token = torch.full((len(prompts), 1), 5 + step)
                logits.append(hf_llava(input_ids=token, past_key_values=cache).logits)
        sequences = [layer.buffer.sequence(s) for layer in cache.layers for s in range(len(prompts))]
        runs.append((torch.cat(logits, 1), sequences, cache.kv_lengths, cache.nbytes, cache.next_positions))
    assert graphs.replayed > graphs.recorded > 1
    (plain, held, *counts), (ours, held_by_ours, *counts_of_ours) = runs
    torch.testing.assert_close(ours, plain)
    for pair in zip(held_by_ours, held, strict=True):
        for one, other in zip(*pair, strict=True):
            torch.testing.assert_close(one, other)
    assert counts[:2] == counts_of_ours[:2] and torch.equal(counts[2], counts_of_ours[2])


@torch.no_grad()
def test_a_recorded_step_does_not_keep_a_dead_cache(hf_llava, little_room):
    graphs, prompt = Graphs(record), Prompts(MIXED[0])
    with attach(hf_llava, NoExit(), graphs):
        cache = hf_llava(**prompt.hf(), use_cache=True).past_key_values
        for _ in range(4):
            hf_llava(input_ids=torch.tensor([[7]]), past_key_values=cache)
        assert graphs.recorded == 1
        held = ref(cache.layers[0].keys), ref(cache)
        del cache
        gc.collect()
        assert [keeps() for keeps in held] == [None, None]


def test_decoders_that_cannot_be_recorded_are_refused(hf_llava, monkeypatch):
    with pytest.raises(ValueError, match="one CUDA device, this one is on cpu"):
        attach(hf_llava, NoExit(), Graphs(CudaGraphs()))
    monkeypatch.setattr(hf_llava.model.language_model.rotary_emb, "rope_type", "dynamic")
    with pytest.raises(ValueError, match="dynamic"):
        attach(hf_llava, NoExit(), Graphs(record))


@pytest.fixture
def device(monkeypatch):
    """Stands in for CUDA: notes the calls, and refuses a pool none of whose graphs is alive, as CUDA does."""
    calls, pools = [], {}

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            calls.append((self.name, "waits for", other.name))

        def __enter__(self):
            calls.append((self.name, "enter"))

        def __exit__(self, *exception):
            calls.append((self.name, "leave"))

    class Graph:
        def capture_begin(self, pool, capture_error_mode):
            alive = pools.setdefault(pool, WeakSet())
            if pool in used and not alive:
                raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
            used.add(pool)
            alive.add(self)
            self._pool = pool
            calls.append(("begin", pool, capture_error_mode))

        def capture_end(self):
            calls.append(("end",))

        def replay(self):
            calls.append(("replay",))

        def pool(self):
            return self._pool

    used = set()
    monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream("side"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("current"))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    on_cpu = {name: getattr(torch, name) for name in ("ones", "zeros")}
    for name, make in on_cpu.items():
        monkeypatch.setattr(torch, name, lambda *size, device, make=make, **options: make(*size, **options))
    monkeypatch.setattr(torch, "mm", lambda *matrices: calls.append(("warm up",)))
    return calls


def test_recording_on_cuda_begins_and_ends_on_a_stream_of_its_own(device):
    """Only the order of the calls. Libraries warm up before recording, which ends even where the work fails."""
    record = CudaGraphs()
    record(lambda: None)
    device.clear()
    record(lambda: device.append(("work",)))()
    assert [call for call in device if call != ("warm up",)] == [
        ("side", "waits for", "current"),
        ("side", "enter"),
        ("begin", "pool", "thread_local"),
        ("work",),
        ("end",),
        ("side", "leave"),
        ("current", "waits for", "side"),
        ("replay",),
    ]
    assert device.index(("warm up",)) < device.index(("begin", "pool", "thread_local"))
    device.clear()
    with pytest.raises(ZeroDivisionError):
        record(lambda: 1 / 0)
    assert device[-2:] == [("end",), ("side", "leave")]


def test_a_pool_outlives_the_graphs_recorded_in_it(device):
    """CUDA frees a pool with its last graph, and a later recording into it fails."""
    record = CudaGraphs()
    replay = record(lambda: None)
    del replay
    gc.collect()
    record(lambda: None)()


def test_the_tape_refuses_what_a_graph_cannot_hold():
    for work in (lambda: torch.ones(1).item(), lambda: torch.tensor([1.0]), lambda: torch.ones(2).nonzero()):
        with pytest.raises(RuntimeError, match="not possible"):
            record(work)
