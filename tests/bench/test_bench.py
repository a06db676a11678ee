"""The bench measures what it says: equalities and plumbing on tiny shapes; no test looks at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from PIL import Image
from transformers import LlamaForCausalLM

from dyvte.bench import prefill, rates, summary, throughput, ttft, variants
from dyvte.bench.__main__ import main, make_parser
from dyvte.bench.decode import Session
from dyvte.bench.generate import generate
from dyvte.bench.graphed import GraphedLayers, OneGraph
from dyvte.bench.ideal import Probe, ideal_seconds, image_shares
from dyvte.bench.labels import frozen, with_answers
from dyvte.bench.peak import Peak
from dyvte.bench.rates import Load, Rates, count_operations
from dyvte.bench.settings import FROM_IMAGES, Measurements, Settings
from dyvte.bench.shapes import (
    END,
    IMAGE,
    SHAPES,
    pixel_prompts,
    random_model,
    random_prompts,
    random_vlm,
)
from dyvte.bench.variants import check_kernels, make_variants, mixed_exits
from dyvte.decoding.graphs import Graphs
from dyvte.engine.model import Generation
from dyvte.gates.supervision import supervise
from dyvte.timing import LayerClock, Quartiles, interleaved
from tests.fixtures.tape import record

LAYERS = 4


@pytest.fixture(scope="module")
def model():
    model = random_model("tiny", LAYERS)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model


@pytest.fixture(scope="module")
def prompts(model):
    return random_prompts(model, 3, text_tokens=9, visual_tokens=12)


def variants_of(model, prompts, exits, names=None):
    return {c.name: c for c in make_variants(model, prompts.batch, exits, "sdpa", names, gate_width=8)}


@torch.no_grad()
def test_variants_that_do_the_same_give_the_same(model, prompts):
    """No exit equals transformers; gates and fixed exits and the paper's way agree at each layer."""
    names = ["baseline", "packed", "never", "gates", "fixed", "paper"]
    variants = variants_of(model, prompts, [0, 2], names)
    logits, lengths = {}, {}
    for name, variant in variants.items():
        with variant.ready(model) as handle:
            out = variant.prefill(model, prompts)
            logits[name] = out.logits
            if handle is not None:
                assert handle.traces[-1].exit_layers == list(variant.exits)
        lengths[name] = [layer.get_seq_length() for layer in out.past_key_values.layers]
    whole = [21] * LAYERS
    for name in ("packed, no exit", "gates, never fire", "eager, all weights"):
        torch.testing.assert_close(logits[name], logits["baseline"], rtol=1e-4, atol=1e-4)
        assert lengths[name] == whole == lengths["baseline"]
    for layer in (0, 2):
        for way in ("fixed", "eager, all weights"):
            same, other = logits[f"gates, exit {layer}"], logits[f"{way}, exit {layer}"]
            torch.testing.assert_close(same, other, rtol=1e-4, atol=1e-4)
            assert not torch.allclose(same, logits["baseline"], rtol=1e-2, atol=1e-2)
            assert lengths[f"{way}, exit {layer}"] == [21] * (layer + 1) + [9] * (LAYERS - layer - 1)


@torch.no_grad()
def test_baseline_is_transformers_own_forward(model, prompts):
    """Without a policy nothing of this project runs, and ``generate`` computes the logits of one position."""
    baseline = variants_of(model, prompts, [0], ["baseline"])["baseline"]
    with baseline.ready(model):
        ours = baseline.prefill(model, prompts).logits
        own = LlamaForCausalLM.forward(model, inputs_embeds=prompts.inputs_embeds, logits_to_keep=1).logits
        assert torch.equal(ours, own)
        positions: list[int] = []
        hook = model.lm_head.register_forward_hook(lambda *given: positions.append(given[1][0].shape[1]))
        generate(model, prompts, 3)
        hook.remove()
    assert positions == [1, 1, 1]


@torch.no_grad()
def test_mixed_exits_are_those_asked_for(model, prompts):
    variant = variants_of(model, prompts, ["mixed"], ["gates"])["gates, mixed exits"]
    with variant.ready(model) as handle:
        together = variant.prefill(model, prompts).logits
    assert handle is not None and handle.traces[-1].exit_layers == mixed_exits(3, LAYERS) == [0, 2, 3]
    for sample, layer in enumerate((0, 2, 3)):
        one = type(prompts)(prompts.inputs_embeds[sample : sample + 1], prompts.visual_mask[:1])
        alone = variants_of(model, one, [layer], ["fixed"])[f"fixed, exit {layer}"]
        with alone.ready(model):
            torch.testing.assert_close(
                alone.prefill(model, one).logits[0], together[sample], rtol=1e-4, atol=1e-4
            )


@torch.no_grad()
def test_graphs_give_what_launching_gives(model, prompts, monkeypatch):
    """Prefill and steps of each variant with graphs equal those of its twin without; only CUDA has real ones."""
    with pytest.raises(ValueError, match="CUDA"):
        variants_of(model, prompts, [1], ["graphs"])
    assert not any(name.startswith("graphs") for name in variants_of(model, prompts, [1]))
    monkeypatch.setattr(variants, "Graphs", lambda compile: Graphs(record, compile=compile))
    found = variants_of(model, prompts, [1, "mixed"], ["packed", "gates", "graphs"])
    assert [name for name in found if name.startswith("graphs")] == [
        "graphs, no exit",
        "graphs, never fire",
        "graphs, exit 1",
        "graphs, mixed exits",
    ]
    for twin in ("packed, no exit", "gates, exit 1", "gates, mixed exits"):
        variant = found["graphs, " + twin.partition(", ")[2]]
        plain = Session(found[twin], model, prompts)
        with found[twin].ready(model):
            expected = plain.steps(9)
        for _ in range(2):
            session = Session(variant, model, prompts)
            with variant.ready(model):
                assert torch.equal(session.steps(9), expected)
        assert variant.graphs.recorded and variant.graphs.replayed > variant.graphs.recorded


@torch.no_grad()
def test_transformers_under_one_graph(model, prompts):
    """Replays give the logits of the forward, and follow the prompts' memory."""
    own, way = variants_of(model, prompts, [0], ["baseline"])["baseline"], OneGraph(record)
    changing = type(prompts)(prompts.inputs_embeds.clone(), prompts.visual_mask)
    with own.ready(model):
        for _ in range(3):
            expected = own.prefill(model, changing).logits
            torch.testing.assert_close(way.prefill(model, changing).logits, expected)
            changing.inputs_embeds.mul_(-2)


@torch.no_grad()
def test_layers_as_graphs_do_the_work_of_layers(model, prompts, monkeypatch):
    """Each layer, over the first one's states and its own cache, which every replay finds as it was."""
    own = variants_of(model, prompts, [0], ["baseline"])["baseline"]
    made, moments = [], iter(range(1000))
    monkeypatch.setattr("dyvte.timing.time.perf_counter", lambda: float(next(moments)))

    def recorded(work):
        made.append(count_operations(work))
        return record(work)

    with own.ready(model):
        session = Session(own, model, prompts)
        whole, step = (
            count_operations(lambda: own.prefill(model, prompts)),
            count_operations(lambda: session.steps(1)),
        )
        session.forget(1)
        for forward, operations in (
            (lambda: own.prefill(model, prompts), whole),
            (lambda: session.steps(1), step),
        ):
            made.clear()
            layers = GraphedLayers(model, forward, recorded)
            assert len(made) == LAYERS + 1 and len(set(made[:-1])) == 1
            assert 0.9 * operations < sum(made) <= operations + 4
            before = [layer.keys.clone() for layer in session.cache.layers]
            probe = layers.probe()
            assert probe.layers == [1.0] * LAYERS and probe.total == LAYERS + 2
            for layer, keys in zip(session.cache.layers, before, strict=True):
                assert torch.equal(layer.keys, keys) and keys.shape[2] == 21


@torch.no_grad()
def test_on_a_gpu_probes_are_graphs(model, prompts, monkeypatch):
    """Prefill and decoding take the ideal from graphed layers there; transformers launches them elsewhere."""
    own = variants_of(model, prompts, [0], ["baseline"])["baseline"]
    session = Session(own, model, prompts)
    monkeypatch.setattr("dyvte.bench.graphed.CudaGraphs", lambda: record)
    probers = [lambda: prefill.prober(own, model, prompts), lambda: session.prober(2)]
    assert all("GraphedLayers" not in prober().__qualname__ for prober in probers)
    monkeypatch.setattr(type(model), "device", property(lambda model: SimpleNamespace(type="cuda")))
    monkeypatch.setattr("dyvte.timing.Marks.__init__", lambda marks, device: None)
    assert all(prober().__qualname__ == "GraphedLayers.probe" for prober in probers)


@torch.no_grad()
def test_a_static_cache_gives_the_same_tokens(model, prompts):
    found = {
        c.name: c for c in make_variants(model, 3, [1], "sdpa", ["baseline", "static"], command="generate")
    }
    static = found["transformers, static cache"]
    with static.ready(model):
        own = generate(model, prompts, 6)
        assert torch.equal(generate(model, prompts, 6, static.generation), own)
    assert static.generation == {"cache_implementation": "static"}
    with pytest.raises(ValueError, match="static is a variant of generate: leave it out"):
        variants_of(model, prompts, [1], ["static"])


def test_compiled_layers_are_asked_for(model, monkeypatch):
    asked = []
    monkeypatch.setattr(variants, "Graphs", lambda compile: asked.append(compile) or Graphs(record))
    names = [found.name for found in make_variants(model, 2, [1], "sdpa", ["compiled", "graphs"])]
    kinds = ["no exit", "never fire", "exit 1"]
    assert names == [f"{name}, {kind}" for name in ("compiled", "graphs") for kind in kinds]
    assert asked == [True] * 3 + [False] * 3


def test_variants_name_their_graphs_and_kernel():
    given = []
    with patch("dyvte.bench.variants.attach", lambda *args: given.append(args) or nullcontext()):
        small = random_model("tiny", 2)
        for variant in make_variants(small, 2, [1], "torch_varlen", ["packed", "gates"], gate_width=4):
            with variant.ready(small):
                pass
    assert [args[2:] for args in given] == [(None, "torch_varlen")] * 2
    assert Settings("prefill").usual_kernel() == "sdpa"


def test_a_gpu_gets_more_variants(model, monkeypatch):
    more = {"prefill": {"one-graph"}, "generate": {"static"}, "decode": set(), "ttft": set()}
    for command, own in more.items():
        here = set(variants.usual_names(model, command))
        card = SimpleNamespace(device=SimpleNamespace(type="cuda"), config=model.config)
        there = set(variants.usual_names(card, command))
        assert there - here == own | {"graphs", "compiled"} and "paper" not in there


@torch.no_grad()
def test_torchs_kernel_runs_where_a_policy_is(model, prompts):
    found = variants_of(model, prompts, [1], ["baseline", "gates"])
    by_torch = {c.name: c for c in make_variants(model, 3, [1], "torch_varlen", ["baseline", "gates"])}
    check_kernels(list(by_torch.values()), allow_unequal=False)
    assert by_torch["baseline"].kernel == "sdpa"
    with by_torch["gates, exit 1"].ready(model) as handle:
        assert handle is not None and handle.run.attention == "torch_varlen"
    with found["baseline"].ready(model):
        assert model.config._attn_implementation == "sdpa"


@torch.no_grad()
@pytest.mark.parametrize("name", ["7b", "qwen2.5-vl-7b", "qwen3-vl-8b", "internvl3-8b"])
def test_shapes_in_small(name, monkeypatch):
    """With heads in the shape's proportions: packed equals transformers, and a narrow copy launches the same."""
    sizes = {
        "hidden_size": 4 * SHAPES[name]["num_attention_heads"],
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    head = {"head_dim": 8} if "head_dim" in SHAPES[name] else {}
    monkeypatch.setitem(SHAPES, name, {**SHAPES[name], **sizes, **head})
    model = random_model(name, 3)
    prompts = random_prompts(model, 2, 6, 7)
    found = variants_of(model, prompts, [1], ["baseline", "packed"])
    logits = []
    for variant in found.values():
        with variant.ready(model):
            logits.append(variant.prefill(model, prompts).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    narrow = rates.narrow_copy(model)
    row = torch.zeros(1, 13, narrow.config.hidden_size)
    own = type(prompts)(prompts.inputs_embeds[:1], prompts.visual_mask[:1])
    with found["baseline"].ready(model):
        launched = count_operations(lambda: found["baseline"].prefill(model, own))
        assert launched == count_operations(
            lambda: narrow(inputs_embeds=row, use_cache=True, logits_to_keep=1)
        )
    load = rates.layer_load(model.config, torch.bfloat16, tokens=1, samples=1, held=10, launches=1)
    params = sum(p.numel() for p in model.model.layers[0].parameters() if p.ndim == 2)
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert load.bytes == 2 * params + 2 * (2 * 10 * config.num_key_value_heads * width)


@torch.no_grad()
def test_parts_of_the_first_token(monkeypatch):
    """With a clock that ticks once per mark, each part takes a tick; with a policy, the decoder is the packed one."""
    model = random_vlm("tiny", 3)
    prompts = pixel_prompts(model, 2, 9, 162)
    assert prompts.pixel_values.shape == (4, 3, 72, 72)
    ticks = iter(range(1000))
    monkeypatch.setattr("dyvte.timing.time.perf_counter", lambda: float(next(ticks)))
    for variant in make_variants(model, 2, [1], "sdpa", ["baseline", "gates"], gate_width=4, command="ttft"):
        total, parts = ttft.timed(variant, model, prompts)
        assert parts == {"tower": 1, "projector": 1, "splice": 2, "decoder": 1, "head": 1} and total == 8
    with pytest.raises(ValueError, match="--visual-tokens must be a multiple of 81"):
        pixel_prompts(model, 1, 9, 100)
    with pytest.raises(ValueError, match="qwen3-vl-8b has no tower here: choose one of 7b, 13b, tiny"):
        random_vlm("qwen3-vl-8b")


def test_throughput_asks_what_it_says(monkeypatch):
    """The engine's loop, with prompts of the length that was asked for, and answers that do not end early."""
    model = random_vlm("tiny", 2)
    chat = throughput.make_chat(model)
    asked = []
    monkeypatch.setattr(
        throughput.Answerer,
        "complete",
        lambda own, batch, complete=throughput.Answerer.complete: asked.append((batch, complete(own, batch))),
    )
    settings = Settings(
        "throughput", variants=["baseline", "fixed"], exit_layers=[0], questions=5, workers=[2]
    )
    settings = replace(settings, prompt_tokens=7, answer_tokens=3, rounds=1, warmup=0, gate_width=4)
    out = Measurements()
    throughput.run(settings, model, 2, out)
    assert [len(batch) for batch, _ in asked] == [2, 2, 1] * 4
    for batch, answers in asked:
        assert (batch.input_ids == IMAGE).sum(1).tolist() == [81] * len(batch)
        assert batch.input_ids.shape[1] == 81 + 7 and batch.images["pixel_values"].shape[1:] == (3, 72, 72)
        assert {answer.report and answer.report.exit_layer for answer in answers} <= {None, 0}
    assert sum(answers[0].report is not None for _, answers in asked) == 6
    ids = chat.generate(asked[0][0], Generation(max_new_tokens=30))
    assert ids.shape == (2, 30) and not (ids == END).any()
    names = [result.variant for result in out.results]
    assert names == ["baseline, 2 workers", "fixed, exit 0, 2 workers", "reading alone, 2 workers"]
    for result in out.results:
        assert result.numbers["questions_per_second"] == pytest.approx(5 / result.seconds[0])
        assert (result.efficiency is None) == result.variant.startswith("reading")


def test_throughput_takes_a_folder(tmp_path):
    Image.new("RGB", (9, 4)).save(tmp_path / "a.png")
    with throughput.image_folder(str(tmp_path), 3) as folder:
        assert folder == tmp_path
    with throughput.image_folder(None, 3) as folder:
        assert [Image.open(path).size for path in sorted(folder.iterdir())] == [throughput.PHOTO] * 3
    assert not folder.exists()
    for given, message in ((tmp_path / "no", "is no folder"), (Path(__file__).parent, "holds no images")):
        with pytest.raises(SystemExit, match=message):
            main(
                ["throughput", "--model", "tiny", "--layers", "1", "--dtype", "fp32", "--images", str(given)]
            )


def test_prompts_have_names():
    parser = make_parser()
    for text, tokens in (("llava-next", 2880), ("qwen2.5-vl-long", 16384), ("81", 81)):
        assert parser.parse_args(["prefill", "--visual-tokens", text]).visual_tokens == tokens
    with pytest.raises(SystemExit):
        parser.parse_args(["prefill", "--visual-tokens", "many"])


def test_peak_sees_what_is_freed_again():
    with Peak(torch.device("cpu")) as peak:
        torch.ones(8 * 2**20).sum()
    assert peak.numbers["reserved_mib"] is None
    assert peak.numbers["peak_mib"] is None or peak.numbers["peak_mib"] > 20


def test_gates_do_their_work_before_they_obey(model, prompts):
    """A scheduled gate launches what a gate launches, and its FLOPs are in the trace."""
    variant = variants_of(model, prompts, [1], ["gates"])["gates, exit 1"]
    with torch.no_grad(), variant.ready(model) as handle:
        variant.prefill(model, prompts)
    assert handle is not None
    expected = 2 * 8 * (2 * model.config.hidden_size + 2)
    assert handle.traces[-1].gate_flops.tolist() == [[expected] * 3] * 2 + [[0] * 3] * 2


@torch.no_grad()
def test_turns_of_a_session_are_alike(model, prompts):
    """A turn decodes the same tokens as the one before it, and as ``generate``."""
    for variant in variants_of(model, prompts, [1, "mixed"]).values():
        session = Session(variant, model, prompts)
        first, before = session.first, session.cache.get_seq_length()
        with variant.ready(model):
            one = session.steps(5)
            session.forget(5)
            assert session.cache.get_seq_length() == before
            two = session.steps(5)
            session.forget(5)
            whole = generate(model, prompts, 6)
        assert torch.equal(one, two) and torch.equal(torch.cat([first, one], 1), whole)


def test_ideal_takes_each_layer_once():
    whole, short = Probe([10.0, 20.0, 30.0], 67.0), Probe([1.0, 2.0, 3.0], 6.5)
    assert ideal_seconds(whole, short, [None]) == pytest.approx(67)
    assert ideal_seconds(whole, short, [0]) == pytest.approx(10 + 2 + 3 + 0.5)
    assert ideal_seconds(whole, short, [2]) == pytest.approx(60 + 0.5)
    half = 10 + (20 + 2) / 2 + (30 + 3) / 2 + (7 + 0.5) / 2
    assert ideal_seconds(whole, short, [0, None]) == pytest.approx(half)
    assert image_shares([0, 1, None, None], 3) == [1, 0.75, 0.5, 0.5]


def test_layer_clock_counts_layers(model, prompts, monkeypatch):
    """With a clock that ticks once per reading, each layer takes one tick in each forward."""
    ticks = iter(range(1000))
    monkeypatch.setattr("dyvte.timing.time.perf_counter", lambda: float(next(ticks)))
    clock = LayerClock(model.model, torch.device("cpu"))
    with torch.no_grad(), clock.running():
        for _ in range(3):
            model(inputs_embeds=prompts.inputs_embeds)
    assert clock.seconds() == [3.0] * LAYERS
    assert not any(layer._forward_pre_hooks for layer in model.model.layers)


def test_rounds_interleave():
    calls: list[str] = []
    tasks = {name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}
    measured = interleaved(tasks, rounds=5, warmup=2)
    rounds = [calls[at : at + 3] for at in range(0, len(calls), 3)]
    assert len(rounds) == 7 and all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert all(len(values) == 5 and min(values) > 6 for values in measured.values())
    with pytest.raises(ValueError, match="rounds"):
        interleaved(tasks, rounds=0)
    assert Quartiles.of([4.0, 1.0, 2.0, 3.0, 10.0]) == Quartiles(median=3.0, low=2.0, high=4.0)


def test_regime_is_the_longest_bound():
    load = Load(flops=8e9, bytes=2e6, launches=40)
    fast = Rates(flops=1e12, bytes=1e9, launch=4e-4)
    assert load.bounds(fast) == pytest.approx({"arithmetic": 8e-3, "bytes": 2e-3, "launches": 4e-4})
    assert load.regime(fast) == "arithmetic"
    assert load.regime(Rates(1e15, 1e9, 4e-4)) == "bytes"
    assert load.regime(Rates(1e15, 1e13, 4e-4)) == "launches"
    assert load.regime(Rates(1e12, 1e9, 9e-3)) == "launches"  # as soon as launches exceed arithmetic


def test_load_of_a_layer(model):
    """One decoding step reads all weights and the cache once; a prefill computes the FLOPs of the tables."""
    config = model.config
    params = sum(p.numel() for p in model.model.layers[0].parameters() if p.ndim == 2)
    step = rates.layer_load(config, torch.bfloat16, tokens=1, samples=2, held=50, launches=7)
    assert step.bytes == 2 * params + 2 * (2 * 50 * 96 * 2) and step.launches == 7
    whole = rates.layer_load(config, torch.float32, tokens=50, samples=1, held=50, launches=7)
    assert whole.flops == prefill.decoder_flops(config, [[50]])


def test_views_are_not_launches():
    x = torch.ones(4, 6)
    assert count_operations(lambda: x.view(24)[:3].t()) == 0
    assert count_operations(lambda: x.add(1).mul_(2).transpose(0, 1)) == 2


def test_unequal_kernels_are_refused(model, prompts):
    variants = list(variants_of(model, prompts, [0], ["baseline", "paper"]).values())
    with pytest.raises(ValueError, match="different attention kernels.*--allow-unequal-kernels"):
        check_kernels(variants, allow_unequal=False)
    check_kernels(variants, allow_unequal=True)
    check_kernels(variants[:1], allow_unequal=False)
    with pytest.raises(SystemExit, match="different attention kernels"):
        main(["prefill", "--model", "tiny", "--layers", "1", "--variants", "baseline", "paper"])
    with pytest.raises(
        SystemExit, match="paper is a variant of prefill: leave it out of --variants of decode"
    ):
        main(["decode", "--model", "tiny", "--layers", "1", "--variants", "paper"])


def test_wrong_sizes_are_refused(model, prompts):
    with pytest.raises(ValueError, match=r"layers 0\.\.3"):
        variants_of(model, prompts, [4])
    with pytest.raises(ValueError, match="7b, 13b, tiny, qwen2.5-vl-7b, internvl3-8b, qwen3-vl-8b"):
        random_model("70b")
    with pytest.raises(ValueError, match="at least 1"):
        random_model("tiny", layers=0)
    with pytest.raises(ValueError, match="visual token"):
        random_prompts(model, 1, 10, 0)


def test_tiny_is_the_shipped_shape():
    folder = Path(__file__).parents[2] / "playground/tiny/model"
    with (folder / "config.json").open() as file:
        shipped = json.load(file)
    assert SHAPES["tiny"] == {name: shipped[name] for name in SHAPES["tiny"]}


@torch.no_grad()
def test_labels_compare_the_frozen_forward(model):
    """The frozen forward of the bench predicts the answers whose losses the labels compare."""
    settings = Settings("labels", prompt_tokens=9, visual_tokens=12, answer_tokens=5)
    prompts, labels = with_answers(settings, model, 2)
    logits = frozen(model, prompts, 5)[:, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits.double().transpose(1, 2), labels[:, -5:], reduction="none"
    ).mean(1)
    made = supervise(model, prompts.inputs_embeds, labels, prompts.visual_mask)
    torch.testing.assert_close(made.loss_without_exit, expected, rtol=1e-4, atol=1e-5)


FLAGS = "--model tiny --layers 3 --dtype fp32 --device cpu --visual-tokens 6 --prompt-tokens 6 --rounds 2"
FLAGS += " --answer-tokens 3 --gate-width 4 --batch 1 2"


@pytest.mark.parametrize(
    "command", ["prefill", "decode", "generate", "ttft", "throughput", "labels", "memory"]
)
def test_command_writes_table_json_and_plot(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rates, "COPY_BYTES", 2**16)
    arguments = [command, *FLAGS.split(), "--json", str(tmp_path / "out.json")]
    if command in FROM_IMAGES:
        arguments += ["--visual-tokens", "81", "--questions", "4", "--workers", "0", "2"]
    if command != "labels":
        arguments += ["--exit-layers", "0", "1", "mixed", "--plot", str(tmp_path / "out.png")]
    main(arguments)
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["settings"]["command"] == command and record["versions"]["torch"] == torch.__version__
    assert {"commit", "hardware", "modified"} <= set(record)
    for result in record["results"]:
        assert f"| {result['contender']} " in printed and min(result["seconds"]) > 0
        assert len(result["seconds"]) == (1 if command == "memory" else 2)
    if command == "labels":
        return
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    mixed = [r for r in record["results"] if r["exit_layer"] == "mixed"]
    assert [r["batch"] for r in mixed] == [2] * (2 if command == "throughput" else 1)
    assert all("peak_mib" in r["numbers"] for r in record["results"]) == (command != "throughput")
    if command in ("prefill", "decode"):
        assert [line["regime"] in ("arithmetic", "bytes", "launches") for line in record["regimes"]] == [
            True
        ] * 4
        ideal = {r["contender"]: r["ideal"] for r in record["results"]}
        assert ideal["FastV K=2 R=50%"] is None and len(ideal["gates, exit 1"]) == 2
    if command == "memory":
        for numbers in (result["numbers"] for result in record["results"]):
            for when in ("prefill", "decode"):
                assert numbers[f"{when}_held_mib"] == numbers[f"{when}_counted_mib"]
                assert numbers[f"{when}_allocated_mib"] >= numbers[f"{when}_held_mib"]


def test_needs_no_extra():
    """Without the packages of the extras the bench measures and prints; a plot says what it needs."""
    program = """
import sys
from transformers import LlamaForCausalLM  # looks for these packages itself
class Missing:
    def find_spec(name, path, target=None):
        if name.split(".")[0] in ("matplotlib", "pandas"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing)
for name in list(sys.modules):
    if name.split(".")[0] in ("matplotlib", "pandas"):
        del sys.modules[name]
from dyvte.bench.__main__ import main
main()
main([*sys.argv[1:], "--plot", "plot.png"])
"""
    command = [sys.executable, "-c", program, "memory", *FLAGS.split(), "--variants", "baseline", "fixed"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "| fixed, exit 1 " in done.stdout, done.stderr
    assert done.returncode == 1 and "pip install 'dyvte[study]'" in done.stderr


def test_one_page_of_all_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rates, "COPY_BYTES", 2**16)
    out = tmp_path / "cpu"
    for name, command in (("one", "prefill"), ("two", "memory")):
        arguments = [command, *FLAGS.split(), "--exit-layers", "1", "--json", str(out / f"{name}.json")]
        main([*arguments, *(["--plot", str(out / "one.png")] if name == "one" else [])])
        (out / f"{name}.md").write_text(capsys.readouterr().out)
    summary.main([str(out)])
    page = (out / "README.md").read_text()
    assert page.index("## one") < page.index("![one](one.png)") < page.index("## two")
    assert "`prefill`, 3 layers of the tiny shape, fp32, attention sdpa, 6 text and 6 visual tokens" in page
    assert page.count("| gates, exit 1 ") == 4 and f"torch {torch.__version__}" in page
    (out / "two.md").unlink()
    with pytest.raises(SystemExit, match="two.md is missing"):
        summary.main([str(out)])
    with pytest.raises(SystemExit, match="holds no results"):
        summary.main([str(tmp_path)])
