"""Small gates: what they compute, and that they load, save, and are refused as the paper's are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dyvte import ExitGates, LearnedExit, attach
from dyvte.gates.supervision import Supervision, gate_loss
from tests.conftest import LAYERS
from tests.gates.test_gates import exits_and_tokens

ROOT = Path(__file__).parents[2]
SMALL = (
    {"kind": "shared", "width": 16},
    {"kind": "low_rank", "width": 16, "rank": 3},
    {"kind": "full", "width": 16, "gated_layers": [1, 3]},
    {
        "kind": "shared",
        "width": 16,
        "gated_layers": [0, 2],
        "states": ("last_visual", "mean_text", "last_text"),
    },
)
HIDDEN = 64


def made(options: dict, seed: int = 3) -> ExitGates:
    """Random gates that decide differently from prompt to prompt."""
    torch.manual_seed(seed)
    gates = ExitGates(LAYERS, HIDDEN, **options)
    for parameter in gates.parameters():
        parameter.data.add_(torch.randn_like(parameter)).mul_(3)
    return gates


def mild(options: dict) -> ExitGates:
    """Random gates whose probabilities are not at their ends."""
    torch.manual_seed(3)
    gates = ExitGates(LAYERS, HIDDEN, **options)
    for parameter in gates.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return gates


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def test_low_rank_is_the_papers_gate_with_a_factored_matrix():
    gates = mild(SMALL[1])
    states = torch.randn(5, 2 * HIDDEN)
    weights = {name: value.detach() for name, value in gates.layers[1].named_parameters()}
    expected = (
        gelu(states @ (weights["w1.weight"] @ weights["v.weight"]).T) @ weights["w2.weight"].T
    ).softmax(-1)
    torch.testing.assert_close(gates.exit_probability(1, states), expected[:, 1], rtol=1e-4, atol=1e-5)
    assert gates.flops == 2 * sum(value.numel() for value in weights.values())


def test_shared_gate_is_one_gate_that_knows_its_layer():
    gates = mild(SMALL[0])
    states = torch.randn(5, 2 * HIDDEN) * torch.tensor([[1.0], [10.0], [0.1], [3.0], [1.0]])
    w1, w2 = (gates.shared.get_submodule(name).weight.detach() for name in ("w1", "w2"))
    parts = [states[:, :HIDDEN], states[:, HIDDEN:]]
    normal = torch.cat([part / part.pow(2).mean(1, keepdim=True).sqrt() for part in parts], 1)
    for layer in range(LAYERS):
        inner = gelu(normal @ w1.T + gates.layers[layer].embedding.detach())
        expected = (inner @ w2.T).softmax(-1)[:, 1]
        torch.testing.assert_close(gates.exit_probability(layer, states), expected, rtol=1e-4, atol=1e-5)
    assert gates.flops == 2 * (w1.numel() + w2.numel())
    assert sum(p.numel() for p in gates.parameters()) == w1.numel() + w2.numel() + LAYERS * 16


def test_layers_without_a_gate_never_exit_and_cost_nothing(hf_llava, prompts):
    gates = made(SMALL[2])
    states = torch.randn(2, 2 * HIDDEN)
    assert (
        gates.exit_probability(0, states).isnan().all()
        and not gates.exit_probability(1, states).isnan().any()
    )
    with pytest.raises(ValueError, match=r"layer 2 has no gate.*\(1, 3\)"):
        gates(2, states)
    with attach(hf_llava, LearnedExit(gates, threshold=0.0)) as handle, torch.no_grad():
        hf_llava(**prompts.hf())
    trace = handle.traces[-1]
    text_only = 3
    assert trace.exit_layers == [None if sample == text_only else 1 for sample in range(len(prompts))]
    assert trace.exit_probabilities[0].isnan().all()
    assert trace.gate_flops.sum(1).tolist() == [0, (len(prompts) - 1) * gates.flops, 0, 0]
    assert [gates.flops_to(layer) // gates.flops for layer in range(LAYERS)] == [0, 1, 1, 2]


def test_loss_leaves_out_layers_without_a_gate():
    gates = ExitGates(LAYERS, HIDDEN, 4, gated_layers=[1, 3])
    labels = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]])
    none = torch.zeros(LAYERS, 2)
    batch = Supervision(
        tuple(range(LAYERS)), (0, 1), torch.randn(LAYERS, 2, 2 * HIDDEN), labels, none, none, none[0]
    )
    loss, (seen, positive, _) = gate_loss(gates, batch)
    expected = sum(
        torch.nn.functional.cross_entropy(gates(layer, batch.states[layer]), labels[layer])
        for layer in (1, 3)
    )
    torch.testing.assert_close(loss, expected)
    assert seen.tolist() == [0, 2, 0, 2] and positive.tolist() == [0, 2, 0, 1]


@pytest.mark.parametrize("options", SMALL, ids=str)
def test_saved_small_gates_decide_the_same(options, hf_llava, prompts, tmp_path):
    gates = made(options)
    gates.save_pretrained(tmp_path)
    again = ExitGates.from_pretrained(tmp_path)
    assert exits_and_tokens(hf_llava, prompts, again) == exits_and_tokens(hf_llava, prompts, gates)
    assert (again.kind, again.rank, again.width, again.states, again.gated_layers) == (
        gates.kind, gates.rank, gates.width, gates.states, gates.gated_layers,
    )  # fmt: skip


@pytest.mark.parametrize("options", ({"width": 16}, *SMALL), ids=str)
def test_float16_files_decide_the_same(options, tmp_path):
    """Probabilities within 2e-3, and the same decisions wherever one is not as close as that to the threshold."""
    torch.manual_seed(0)
    gates = ExitGates(LAYERS, HIDDEN, **options)
    layer, states = gates.gated_layers[-1], torch.randn(200, len(gates.states) * HIDDEN)
    before = gates.exit_probability(layer, states)
    gates.half().save_pretrained(tmp_path)
    again = ExitGates.from_pretrained(tmp_path)
    assert {value.dtype for value in again.state_dict().values()} == {torch.float16}
    after = again.exit_probability(layer, states)
    assert float((after - before).abs().max()) < 2e-3
    clear = (before - 0.5).abs() > 2e-3
    assert clear.sum() > 150 and torch.equal((after > 0.5)[clear], (before > 0.5)[clear])


def test_small_gates_that_do_not_fit_are_refused(hf_llava, tmp_path):
    for options, message in (
        ({"kind": "tiny"}, "one of full, low_rank, shared, got 'tiny'"),
        ({"kind": "low_rank"}, "need a positive rank"),
        ({"rank": 3}, "need a positive rank"),
        ({"gated_layers": [4]}, r"some of 0..3, got \(4,\)"),
        ({"gated_layers": []}, "some of"),
    ):
        with pytest.raises(ValueError, match=message):
            ExitGates(LAYERS, HIDDEN, **options)
    with pytest.raises(ValueError, match="6 layers.*4"):
        attach(hf_llava, LearnedExit(ExitGates(6, HIDDEN, 8, kind="shared")))
    made(SMALL[1]).save_pretrained(tmp_path)
    described = json.loads((tmp_path / "gates.json").read_text())
    for name, value in (("rank", 4), ("kind", "full"), ("gated_layers", [0]), ("width", 8)):
        changed = {**described, name: value}
        if value == "full":
            del changed["rank"]
        (tmp_path / "gates.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="should have shape"):
            ExitGates.from_pretrained(tmp_path)


def test_init_weight_makes_small_gates_and_merges_only_the_papers(hf_llava, tmp_path):
    hf_llava.config.save_pretrained(tmp_path / "model")
    command = [
        sys.executable,
        "init_weight.py",
        "--model-path",
        tmp_path / "model",
        "--output",
        tmp_path / "gates",
    ]
    for flags in (["--gate-kind", "small"], ["--gated-layers", "1"]):
        merged = subprocess.run([*command, *flags, "--merge"], cwd=ROOT, capture_output=True, text=True)
        assert merged.returncode == 1 and "leave --merge out" in merged.stderr
    flags = ["--gate-kind", "small", "--dtype", "float16"]
    subprocess.run([*command, *flags], cwd=ROOT, check=True, capture_output=True)
    gates = ExitGates.from_pretrained(tmp_path / "gates")
    assert (gates.kind, gates.width, gates.layers[0].embedding.dtype) == ("shared", 64, torch.float16)
