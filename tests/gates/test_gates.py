"""Gates: states, files, decisions, refusals."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dyvte import ExitGates, LearnedExit, attach
from dyvte.decoding.packed import PackedRow, drop_visual, fork, pack
from dyvte.gates.files import has_gates
from dyvte.gates.origin import Origin, TrainedOn
from dyvte.gates.states import STATES, gather_states
from dyvte.provenance import checkpoint_digest
from dyvte.reduction.combine import Combine
from tests.conftest import LAYERS

ROOT = Path(__file__).parents[2]


def row_of(columns: list[str], hidden: int = 8, seed: int = 0) -> PackedRow:
    """Samples spelled as letters: t text, v visual, a answer, . padding."""
    torch.manual_seed(seed)
    wide = max(map(len, columns))
    grid = [list(c.ljust(wide, ".")) for c in columns]
    is_ = lambda letter: torch.tensor([[x == letter for x in row] for row in grid])  # noqa: E731
    return pack(torch.randn(len(grid), wide, hidden), ~is_("."), None, is_("v"), is_("a"))


def test_states_by_hand():
    row = row_of(["ttvvttt", "tvtvvt", "vvvttaa", "ttt", "tvv"])
    assert row.layout.may_exit == (0, 1, 2)  # text only, and an image at the very end, have none
    states = gather_states(row, STATES).unflatten(1, (4, -1))
    h = row.hidden[0]
    starts = row.layout.starts
    expected = [
        [h[2], h[3], h[4:6].mean(0), h[6]],
        [h[starts[1] + torch.tensor([1, 3])].mean(0), h[starts[1] + 4], h[starts[1] + 5], h[starts[1] + 5]],
        [h[starts[2] : starts[2] + 2].mean(0), h[starts[2] + 2], h[starts[2] + 3], h[starts[2] + 4]],
    ]
    torch.testing.assert_close(states, torch.stack([torch.stack(e) for e in expected]))


def test_states_are_those_of_samples_that_still_have_images():
    row = row_of(["tvvtt", "tvtt", "vvttt"])
    row = drop_visual(row, [1])
    assert row.layout.may_exit == (0, 2)
    assert fork(row, 0).layout.may_exit == (0, 2)


@pytest.mark.parametrize("states", [c for n in range(1, 5) for c in itertools.combinations(STATES, n)])
def test_states_read_what_they_say(states):
    """Changing only the tokens of one kind changes exactly the states of that kind."""
    row = row_of(["ttvvttt", "vvvttaa"])
    before = gather_states(row, states).unflatten(1, (len(states), -1))
    changed = row.hidden.clone()
    changed[:, row.layout.is_visual] += 1
    after = gather_states(PackedRow(changed, row.layout), states).unflatten(1, (len(states), -1))
    moved = (after != before).any(-1).any(0).tolist()
    assert moved == ["visual" in state for state in states]


def test_probability_is_the_papers_formula():
    gates = ExitGates(3, 8, width=16)
    states = torch.randn(5, 16)
    w1, w2 = gates.layers[1].w1.weight, gates.layers[1].w2.weight
    x = states @ w1.T
    gelu = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    expected = (gelu @ w2.T).softmax(-1)[:, 1]
    torch.testing.assert_close(gates.exit_probability(1, states), expected)
    assert gates.flops == 2 * (w1.numel() + w2.numel())
    assert (gates.exit_probability(1, states) > 0.5).tolist() == [bool(b > a) for a, b in gates(1, states)]


def test_nan_never_exits(hf_llava, prompts):
    gates = ExitGates(LAYERS, 64, width=8)
    for parameter in gates.parameters():
        parameter.data.fill_(float("nan"))
    with attach(hf_llava, LearnedExit(gates, threshold=0.0)) as handle, torch.no_grad():
        hf_llava(**prompts.hf())
    assert handle.traces[-1].exit_layers == [None] * len(prompts)


def test_range_and_threshold(hf_llava, prompts, gates):
    text_only = 3
    with torch.no_grad():
        for policy, expected in (
            (LearnedExit(gates, threshold=0.0), 0),
            (LearnedExit(gates, threshold=0.0, first_layer=2), 2),
            (LearnedExit(gates, threshold=1.0), None),
        ):
            with attach(hf_llava, policy) as handle:
                hf_llava(**prompts.hf())
            exits = handle.traces[-1].exit_layers
            assert exits.pop(text_only) is None and set(exits) == {expected}
        with attach(hf_llava, LearnedExit(gates, first_layer=1, last_layer=2)) as handle:
            hf_llava(**prompts.hf())
    asked = ~handle.traces[-1].exit_probabilities.isnan()
    assert not asked[0].any() and not asked[3].any() and asked[1].sum() == len(prompts) - 1
    for bad in ({"threshold": -0.1}, {"threshold": float("nan")}, {"first_layer": 3, "last_layer": 2}):
        with pytest.raises(ValueError, match="must"):
            LearnedExit(gates, **bad)


def exits_and_tokens(model, prompts, gates):
    with attach(model, LearnedExit(gates)) as handle:
        tokens = model.generate(**prompts.hf(), max_new_tokens=4, do_sample=False)
    return handle.traces[-1].exit_layers, tokens.tolist()


def test_saved_gates_decide_the_same(hf_llava, prompts, gates, tmp_path):
    gates.save_pretrained(tmp_path / "own")
    again = ExitGates.from_pretrained(tmp_path / "own")
    assert has_gates(tmp_path / "own") and not has_gates(tmp_path)
    assert exits_and_tokens(hf_llava, prompts, again) == exits_and_tokens(hf_llava, prompts, gates)
    assert (again.width, again.states) == (gates.width, gates.states)


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin"])
def test_merged_checkpoint_with_the_papers_keys(hf_llava, prompts, kind, tmp_path):
    """init_weight.py --merge writes the keys of the paper's code, and they read back as the same gates."""
    source, merged, plain = tmp_path / "model", tmp_path / "merged", tmp_path / "gates"
    if kind == "bin":
        source.mkdir()
        hf_llava.config.save_pretrained(source)
        torch.save(hf_llava.state_dict(), source / "pytorch_model.bin")
    else:
        hf_llava.save_pretrained(source, max_shard_size="200KB" if kind == "sharded" else "5GB")
    for output, flags in ((merged, ["--merge"]), (plain, [])):
        command = [sys.executable, ROOT / "init_weight.py", "--model-path", source, "--output", output]
        subprocess.run([*command, "--width", "32", "--seed", "5", *flags], check=True, cwd=ROOT)
    from_merged, own = ExitGates.from_pretrained(merged), ExitGates.from_pretrained(plain)
    for gates in (from_merged, own):
        for parameter in gates.parameters():
            parameter.data.mul_(5)
    assert exits_and_tokens(hf_llava, prompts, from_merged) == exits_and_tokens(hf_llava, prompts, own)
    index = json.loads(next(merged.glob("*.index.json")).read_text())["weight_map"]
    assert f"model.visual_gates_router.{LAYERS - 1}.w2.weight" in index
    assert all((merged / shard).is_file() for shard in index.values())
    assert source_keys(source) <= set(index)
    assert checkpoint_digest(str(merged)) == checkpoint_digest(str(source))  # the model is the same


def source_keys(folder) -> set[str]:
    """Names of all weights in a checkpoint folder."""
    from safetensors import safe_open

    keys = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            keys |= set(file.keys())
    for path in folder.glob("*.bin"):
        keys |= set(torch.load(path, weights_only=True))
    assert keys
    return keys


def test_gates_of_another_model_are_refused(hf_llava, gates, tmp_path):
    with pytest.raises(ValueError, match="6 layers.*4"):
        attach(hf_llava, LearnedExit(ExitGates(6, 64, 8)))
    with pytest.raises(ValueError, match="32.*64"):
        attach(hf_llava, LearnedExit(ExitGates(LAYERS, 32, 8)))
    gates.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "gates.json").read_text())
    for name, value, message in (
        ("states", ["mean_text"], r"\(32, 64\).*\(32, 128\)"),
        ("width", 16, r"\(16, 128\).*\(32, 128\)"),
        ("num_layers", 5, "None"),
        ("format", "other", "description"),
    ):
        (tmp_path / "gates.json").write_text(json.dumps({**described, name: value}))
        with pytest.raises(ValueError, match=message):
            ExitGates.from_pretrained(tmp_path)
    (tmp_path / "gates.json").unlink()
    with pytest.raises(FileNotFoundError, match="gates.json"):
        ExitGates.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="init_weight"):
        ExitGates.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="states"):
        ExitGates(2, 8, states=("mean_text", "mean_audio"))


def test_where_gates_come_from_is_saved_and_checked(gates, tmp_path):
    gates.save_pretrained(tmp_path / "unknown")
    assert ExitGates.from_pretrained(tmp_path / "unknown").origin == Origin()
    gates = copy.deepcopy(gates)  # the fixture is the session's
    gates.origin = Origin("llava-a", "a" * 64, "llava_llama", TrainedOn("d" * 64, 7))
    gates.save_pretrained(tmp_path)
    again = ExitGates.from_pretrained(tmp_path)
    assert again.origin == gates.origin
    for digest in (None, "a" * 64):
        again.check_base(digest, "llava-a")
    with pytest.raises(ValueError, match="trained for llava-a .*not for llava-b "):
        again.check_base("b" * 64, "llava-b")
    described = json.loads((tmp_path / "gates.json").read_text())
    old = {key: described[key] for key in ("format", "num_layers", "hidden_size", "width", "states")}
    (tmp_path / "gates.json").write_text(json.dumps({**old, "version": 1}))
    old_gates = ExitGates.from_pretrained(tmp_path)
    assert old_gates.origin == Origin()
    old_gates.check_base("b" * 64, "llava-b")  # nothing is known, so nothing is refused


def test_gates_are_refused_by_other_models_where_they_are_attached(gates, hf_llava, tmp_path):
    hf_llava.save_pretrained(tmp_path / "llava-b")
    model = type(hf_llava).from_pretrained(tmp_path / "llava-b")
    gates = copy.deepcopy(gates)
    gates.origin = Origin("llava-a", "a" * 64, "llava")
    with pytest.raises(ValueError, match="trained for llava-a .*not for llava-b "):
        attach(model, LearnedExit(gates))
    with pytest.raises(ValueError, match="trained for llava-a .*not for llava-b "):
        attach(model, Combine((LearnedExit(gates),)))
    gates.origin = Origin("llava-a", None, "qwen2_5_vl")
    with pytest.raises(
        ValueError, match="llava-a of the family qwen2_5_vl, not for llava-b of the family llava"
    ):
        attach(model, LearnedExit(gates))
    gates.origin = Origin("llava-b", checkpoint_digest(str(tmp_path / "llava-b")), "llava")
    attach(model, LearnedExit(gates)).detach()
    attach(hf_llava, LearnedExit(gates)).detach()  # of which nobody knows where it is from


def test_files_are_whole_or_not_there(gates, tmp_path, monkeypatch):
    """A crash between the two files leaves no description, which is what says that gates are there."""

    def dies(*args, **kwargs):
        raise RuntimeError("killed")

    monkeypatch.setattr("dyvte.gates.files.write_json", dies)
    with pytest.raises(RuntimeError):
        gates.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gates.safetensors"]
    with pytest.raises(FileNotFoundError, match="gates.json"):
        ExitGates.from_pretrained(tmp_path)


def test_files_with_nan_are_refused(gates, tmp_path):
    broken = ExitGates(2, 8, 4)
    broken.layers[1].w2.weight.data[0, 0] = float("nan")
    broken.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="layers.1.w2.weight.*not finite"):
        ExitGates.from_pretrained(tmp_path)


def test_gain_scales_fresh_weights_alone(tmp_path):
    def fresh(**options):
        torch.manual_seed(3)
        return ExitGates(2, 8, width=4, **options)

    plain, small = fresh(), fresh(gain=0.1)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], 0.1 * value)
    small.save_pretrained(tmp_path)
    loaded = ExitGates.from_pretrained(tmp_path)
    assert torch.equal(loaded.layers[1].w1.weight, small.layers[1].w1.weight)
