"""Grids of gates fitted from one store: they read what they say, and are judged as a plain computation does."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dyvte import ExitGates
from dyvte.cost.flops import layer_flops
from dyvte.gates.states import ATTENTION_STATES, STATES
from dyvte.gates.store import Manifest, StateStore, StoreWriter
from dyvte.study import gate_grid, gate_sizes

LAYERS, HIDDEN, SAMPLES = 3, 8, 20
CONFIG = SimpleNamespace(
    num_hidden_layers=LAYERS,
    hidden_size=HIDDEN,
    intermediate_size=16,
    num_attention_heads=2,
    num_key_value_heads=2,
)
FLAGS = ["--width", "8", "--learning_rate", "1e-2", "--per_device_train_batch_size", "8", "--max_steps", "2",
         "--use_cpu", "True", "--disable_tqdm", "True"]  # fmt: skip


def write_store(folder, changed=(), samples=SAMPLES, states=STATES + ATTENTION_STATES):
    """A made store of two shards; the ``changed`` states are others, all else is the same."""
    identity = {
        "model": f"m{sorted(changed)}", "data": "d", "settings": {}, "states": list(states), "dtype": "float32",
        "num_layers": LAYERS, "hidden_size": HIDDEN, "samples": samples,
    }  # fmt: skip
    writer = StoreWriter(folder, Manifest(**identity, shard_size=12))
    for number, part in writer.missing():
        draw = torch.Generator().manual_seed(number)
        n = len(part)
        tensors = {name: torch.randn(n, LAYERS, HIDDEN, generator=draw) for name in states}
        agreement = (torch.rand(n, LAYERS, generator=draw) > 0.4).float()
        tensors |= {name: tensors[name] + 1 for name in changed}
        losses = torch.ones(n, LAYERS, dtype=torch.float64)
        tokens = torch.randint(20, 30, (n,), generator=draw)
        writer.write(number, tensors | {
            "modality_lengths": torch.full((n,), 5),
            "index": torch.tensor(list(part)), "agreement": agreement, "loss_with_exit": losses,
            "loss_without_exit": losses[:, 0].clone(), "prompt_tokens": tokens, "visual_tokens": tokens - 9,
        })  # fmt: skip
    return folder


def weights(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/gates.safetensors")}


@pytest.mark.parametrize("kind, among", [("states", STATES), ("attention", ATTENTION_STATES)])
def test_all_combinations_read_what_they_say(kind, among, tmp_path):
    """Other states in the store change what exactly those gates are fitted to that are named after one of them."""
    names = {"+".join(c) for n in range(1, len(among) + 1) for c in itertools.combinations(among, n)}
    assert len(names) == {"states": 15, "attention": 7}[kind]
    changed = among[:2]
    one, other = write_store(tmp_path / "one"), write_store(tmp_path / "other", changed)
    grid = gate_grid.grid(kind, LAYERS)
    assert set(grid) == names
    for name, (flag, *states) in grid.items():
        assert flag == "--states" and states == name.split("+")
        entries = [StateStore(store, states)[13] for store in (one, other)]
        assert entries[0]["states"].shape == (LAYERS, len(states) * HIDDEN)
        same = {key: torch.equal(value, entries[1][key]) for key, value in entries[0].items()}
        assert same.pop("states") == (not set(states) & set(changed)), name
        assert all(same.values())


def test_other_visual_states_change_no_gate_that_reads_text(tmp_path, monkeypatch):
    monkeypatch.setattr(gate_grid, "STATES", ("mean_visual", "mean_text"))
    for store in (write_store(tmp_path / "one"), write_store(tmp_path / "other", ["mean_visual"])):
        gate_grid.main(
            ["states", "--store", str(store), "--output", str(tmp_path / f"{store.name}-gates"), *FLAGS]
        )
    one, other = weights(tmp_path / "one-gates"), weights(tmp_path / "other-gates")
    assert set(one) == set(other) == {"mean_visual", "mean_text", "mean_visual+mean_text"}
    assert {name for name in one if one[name] != other[name]} == {"mean_visual", "mean_visual+mean_text"}
    for name in one:
        assert ExitGates.from_pretrained(tmp_path / "one-gates" / name).states == tuple(name.split("+"))


def test_pairs_come_in_the_papers_order():
    assert list(gate_grid.grid("pairs", LAYERS)) == [
        "mean_visual", "last_visual", "mean_text", "last_text", "mean_visual+last_visual", "mean_visual+mean_text",
        "mean_visual+last_text", "last_visual+mean_text", "last_visual+last_text", "mean_text+last_text",
    ]  # fmt: skip


def test_gates_that_are_there_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gate_grid, "STATES", ("mean_text",))
    store, output = write_store(tmp_path / "store"), tmp_path / "gates"
    flags = ["states", "--store", str(store), "--output", str(output), *FLAGS]
    gate_grid.main(flags)
    made = (output / "mean_text" / "gates.safetensors").stat().st_mtime_ns
    gate_grid.main(flags)
    assert (output / "mean_text" / "gates.safetensors").stat().st_mtime_ns == made
    assert capsys.readouterr().out.count("kept:") == 1
    before = weights(output)
    gate_grid.main([*flags, "--seed", "9"])
    assert weights(output) != before
    with pytest.raises(SystemExit, match="manifest.json is missing"):
        gate_grid.main(["states", "--store", str(tmp_path), "--output", str(output)])


def test_sizes_are_judged_as_a_plain_computation_does(tmp_path, monkeypatch, make_record):
    store = write_store(tmp_path / "store", samples=30)
    gates = {
        "full-2048": ExitGates(LAYERS, HIDDEN, 16),
        "shared-4": ExitGates(LAYERS, HIDDEN, 4, kind="shared", gated_layers=[0, 2]),
    }
    for name, made in gates.items():
        made.save_pretrained(tmp_path / "gates" / name)
    result = gate_sizes.compare(store, tmp_path / "gates", CONFIG, "full-2048")
    from safetensors.torch import load_file

    shards = [load_file(path) for path in sorted(store.glob("*.safetensors"))]
    for size in result["sizes"]:
        made = gates[size["name"]]
        kept, flops, exits, full = [], [], [], []
        for shard in shards:
            for row in range(len(shard["index"])):
                tokens, text = int(shard["prompt_tokens"][row]), 9
                exit_layer, gate_flops = LAYERS, 0
                for layer in made.gated_layers:
                    states = torch.cat([shard["mean_text"][row, layer], shard["last_text"][row, layer]])[None]
                    keep, leave = made(layer, states)[0].tolist()
                    gate_flops += made.flops
                    if leave > keep:
                        exit_layer = layer
                        break
                exits.append(exit_layer)
                kept.append(exit_layer == LAYERS or bool(shard["agreement"][row, exit_layer] == 1))
                counts = [tokens if layer <= exit_layer else text for layer in range(LAYERS)]
                flops.append(sum(layer_flops(CONFIG, count) for count in counts) + gate_flops)
                full.append(LAYERS * layer_flops(CONFIG, tokens))
        half = size["at_half"]
        assert half["kept"] == pytest.approx(np.mean(kept)) and half["exit_layer"] == pytest.approx(
            np.mean(exits)
        )
        assert half["flops"] == pytest.approx(np.sum(flops) / np.sum(full))
        assert size["parameters"] == sum(value.numel() for value in made.parameters())
        if size["name"] == "full-2048":
            assert (
                size["at_budget"]["flops"] <= half["flops"]
                and size["at_budget"]["kept"] >= half["kept"] - 0.2
            )
        elif size["at_budget"]:
            reference = result["sizes"][0]["at_half"]["flops"]
            assert size["at_budget"]["flops"] <= reference
    monkeypatch.setattr(gate_sizes, "decoder_config", lambda path: CONFIG)
    out = tmp_path / "out"
    command = [
        "--store",
        str(store),
        "--gates",
        str(tmp_path / "gates"),
        "--model-path",
        "m",
        "--output",
        str(out),
    ]
    gate_sizes.main(command)
    assert json.loads((out / "gate_sizes.json").read_text()) == result
    assert {path.name for path in out.iterdir()} == {
        f"gate_sizes.{end}" for end in ("json", "md", "png", "pdf")
    }
    assert "shared-4" in (out / "gate_sizes.md").read_text()
    with pytest.raises(SystemExit, match="no gates named full-1"):
        gate_sizes.main([*command, "--reference", "full-1"])

    # two benchmarks without exit (50 and 70) and with full-2048, but only one with shared-4
    for name, row, score, flops in (
        ("gqa", "none", 50.0, 8.0),
        ("pope", "none", 70.0, 10.0),
        ("gqa", "full-2048", 48.0, 4.0),
        ("pope", "full-2048", 71.0, 6.0),
        ("gqa", "shared-4", 44.0, 3.0),
    ):
        method, settings = ("none", {}) if row == "none" else ("dyvte", {"gates": f"here/{row}"})
        record = make_record(
            benchmark=name, method=method, settings=settings, score=score, decoder_tflops=flops
        )
        record.write(tmp_path / "results" / name / row / "record.json")
    gate_sizes.main([*command, "--records", str(tmp_path / "results")])
    scored = json.loads((out / "gate_sizes.json").read_text())
    assert scored["benchmarks"] == {"benchmarks": ["gqa", "pope"], "without_exit": 60.0}
    assert {size["name"]: size["benchmarks"] for size in scored["sizes"]} == {
        "full-2048": {"score": 59.5, "flops": pytest.approx(0.55)},
        "shared-4": None,
    }
    text = (out / "gate_sizes.md").read_text()
    assert "| 59.50 | 55.0% |" in text and "average of GQA, POPE; 60.00 without exit" in text
    (tmp_path / "results/pope/none/record.json").unlink()
    with pytest.raises(SystemExit, match="records without exit are missing for pope"):
        gate_sizes.main([*command, "--records", str(tmp_path / "results")])


def test_float16_gates_decide_the_same_on_the_stored_states(tmp_path):
    """Probabilities within 2e-3 of float32 storage, on states from a store."""
    store = write_store(tmp_path / "store")
    torch.manual_seed(0)
    gates = ExitGates(LAYERS, HIDDEN, 32)
    gates.save_pretrained(tmp_path / "full")
    gates.half().save_pretrained(tmp_path / "half")
    full, half = (
        gate_sizes.outcomes_of(ExitGates.from_pretrained(tmp_path / name), store, CONFIG)
        for name in ("full", "half")
    )
    assert 0 < float(np.abs(full.probabilities - half.probabilities).max()) < 2e-3
    clear = np.abs(full.probabilities - 0.5) > 2e-3
    assert clear.mean() > 0.9 and ((full.probabilities > 0.5) == (half.probabilities > 0.5))[clear].all()
