"""On a card: replaying gives what launching gives, nothing is launched in between, and memory stays bounded."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dyvte import ExitGates, FixedExit, LearnedExit, NoExit, attach
from dyvte.decoding.graphs import Graphs
from dyvte.decoding.graphs.graphs import PAYS_AFTER
from tests.conftest import LAYERS, MIXED, Prompts, tiny_hf_llava

pytestmark = pytest.mark.gpu
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def model(request):
    return tiny_hf_llava().to("cuda", request.param)


@pytest.fixture
def learned(gates):
    """The exits of the CPU tests; the fixture's own gates stay on the CPU."""
    own = ExitGates(LAYERS, 64, width=32)
    own.load_state_dict(gates.state_dict())
    return LearnedExit(own)


def on_card(prompts, model):
    inputs = {name: value.to("cuda") for name, value in prompts.hf().items()}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return inputs


def prefill(model, policy, inputs, graphs):
    with torch.no_grad(), attach(model, policy, graphs) as handle:
        out = model(**inputs, use_cache=True)
    return out, handle.traces[-1]


@pytest.mark.parametrize(
    "prompts", [Prompts(MIXED[0]), Prompts(*MIXED), Prompts(MIXED[3]), Prompts(MIXED[1], MIXED[5])]
)
def test_replayed_prefill_equals_launched_prefill(model, learned, prompts):
    inputs, graphs, tolerance = on_card(prompts, model), Graphs(), TOLERANCE[model.dtype]
    for policy in (NoExit(), FixedExit(1), learned):
        plain, trace = prefill(model, policy, inputs, None)
        for _ in range(4):
            ours, ours_trace = prefill(model, policy, inputs, graphs)
            if model.dtype == torch.bfloat16 and ours_trace.exit_layers != trace.exit_layers:
                pytest.skip("a gate near its threshold decides otherwise in bfloat16")
            assert ours_trace.exit_layers == trace.exit_layers
            assert ours.past_key_values.kv_lengths == plain.past_key_values.kv_lengths
            scale = plain.logits.abs().max()
            assert (ours.logits - plain.logits).abs().max() <= tolerance * scale
            for one, other in zip(ours.past_key_values.layers, plain.past_key_values.layers, strict=True):
                for a, b in ((one.keys, other.keys), (one.values, other.values)):
                    assert (a - b).abs().max() <= tolerance * b.abs().max()
    assert graphs.replayed > graphs.recorded > 0


def test_three_prompts_are_answered_one_after_another(learned):
    """Each answer's graphs die with its cache, and the next one records into the same pool."""
    model, graphs = tiny_hf_llava().to("cuda"), Graphs()
    for prompt in (MIXED[0], MIXED[4], MIXED[5], MIXED[0]):
        inputs = on_card(Prompts(prompt), model)
        answers = []
        for given in (None, graphs):
            with torch.no_grad(), attach(model, learned, given):
                answers.append(
                    model.generate(**inputs, do_sample=False, max_new_tokens=24, eos_token_id=None)
                )
        assert torch.equal(*answers)
    assert graphs.replayed > graphs.recorded > 3


def test_prompts_of_many_lengths_keep_to_the_budget(learned):
    model, budget = tiny_hf_llava().to("cuda"), 16 * 2**20
    graphs = Graphs(most_bytes=budget)
    generator = torch.Generator().manual_seed(0)
    prefill(model, learned, {"input_ids": torch.full((1, 500), 7, device="cuda")}, None)  # workspaces
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(200):
        length = int(torch.randint(4, 500, (1,), generator=generator))
        inputs = {"input_ids": torch.full((1, length), 7, device="cuda")}
        for _ in range(2):
            prefill(model, learned, inputs, graphs)
        assert graphs.nbytes <= budget
    assert graphs.recorded > 0
    assert torch.cuda.memory_reserved() - before < 8 * budget


def test_nothing_is_launched_between_two_replays(learned):
    model, graphs = tiny_hf_llava().to("cuda"), Graphs()
    never = LearnedExit(learned.gates, threshold=1.0)
    inputs = on_card(Prompts(*MIXED), model)
    for _ in range(3):
        prefill(model, never, inputs, graphs)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as measured:
        prefill(model, never, inputs, graphs)
        torch.cuda.synchronize()
    calls = sorted((event.time_range.start, event.name) for event in measured.events())
    names = [name for _, name in calls]
    launches = [at for at, name in enumerate(names) if name.startswith("cudaGraphLaunch")]
    assert len(launches) == LAYERS
    between = names[launches[0] : launches[-1]]
    assert not [
        name for name in between if name.startswith(("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpy"))
    ]


def test_graphs_and_the_fastest_kernel_are_defaults(model, learned):
    inputs = on_card(Prompts(MIXED[0]), model)
    with torch.no_grad(), attach(model, learned) as handle:
        for _ in range(PAYS_AFTER + 2):
            model(**inputs)
        assert handle.graphs is not None and handle.graphs.replayed >= 2 * LAYERS and not handle.graphs.failed
        assert handle.run.graphs
        if torch.cuda.get_device_capability() >= (8, 0):
            kernel = "torch_varlen" if model.dtype == torch.bfloat16 else "sdpa"
            assert handle.kernel == handle.run.attention == kernel


def test_compiled_layers_give_what_layers_give(learned):
    model, graphs = tiny_hf_llava().to("cuda"), Graphs(compile=True)
    inputs = on_card(Prompts(*MIXED), model)
    plain, trace = prefill(model, learned, inputs, None)
    for _ in range(3):
        ours, ours_trace = prefill(model, learned, inputs, graphs)
        assert ours_trace.exit_layers == trace.exit_layers
        torch.testing.assert_close(ours.logits, plain.logits, rtol=1e-3, atol=1e-3)
    assert graphs.recorded > 0
