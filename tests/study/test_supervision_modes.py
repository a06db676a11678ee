"""Labels of all layers against random layers: same passes, judged on a held-out store, kept when there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dyvte import ExitGates
from dyvte.cost.flops import layer_flops
from dyvte.gates.calibration import Outcomes
from dyvte.gates.training import step_layer
from dyvte.study import gate_grid, supervision_modes
from llava.model.language_model.llava_llama import LlavaConfig
from tests.study.test_gate_grid import CONFIG, HIDDEN, LAYERS, write_store

FLAGS = ["--width", "8", "--learning_rate", "1e-2", "--per_device_train_batch_size", "8", "--use_cpu", "True",
         "--disable_tqdm", "True"]  # fmt: skip


def test_judged_at_every_threshold_by_hand():
    # two samples; gates say 0.3 then 0.9 for one, and nothing above 0.1 for the other
    probabilities = np.array([[0.3, 0.1], [0.9, 0.1]])
    kept = np.array([[False, True], [True, True]])
    costs = np.array([[10.0, 10.0], [20.0, 20.0], [44.0, 44.0]])
    found = supervision_modes.at_thresholds(Outcomes(probabilities, kept, costs), full=40.0)
    at = supervision_modes.THRESHOLDS.index
    assert found["changed"][at(0.2)] == 0.5 and found["changed"][at(0.5)] == 0
    # at 0.2 costs 10 and 44, at 0.5 costs 20 and 44, at 1 no exit and gates on top
    assert found["saved"][at(0.2)] == pytest.approx(1 - 27 / 40)
    assert found["saved"][at(0.5)] == pytest.approx(1 - 32 / 40)
    assert found["saved"][at(1.0)] == pytest.approx(-0.1) and found["exit_layer"][at(0.2)] == 1


def test_changed_at_a_saving():
    saved, changed = [0.6, 0.5, 0.4, 0.1], [0.3, 0.1, 0.2, 0.0]
    assert supervision_modes.changed_at(saved, changed, 0.4) == 0.1
    assert supervision_modes.changed_at(saved, changed, 0.7) is None


def test_flops_of_a_pass_by_hand():
    full, text = layer_flops(CONFIG, 30), layer_flops(CONFIG, 10)
    # a copy after layer 0 runs through layers 1 and 2, one after layer 1 through layer 2
    assert supervision_modes.pass_flops(CONFIG, [30], [20], [0]) == 3 * full + 2 * text
    assert supervision_modes.pass_flops(CONFIG, [30], [20], range(3)) == 3 * full + 3 * text


@pytest.fixture
def arguments(tmp_path):
    write_store(tmp_path / "store")
    write_store(tmp_path / "held-out", changed=["last_text"], samples=14)
    LlavaConfig(**vars(CONFIG)).save_pretrained(tmp_path / "model")
    return [
        *("--store", str(tmp_path / "store"), "--held-out", str(tmp_path / "held-out")),
        *("--model-path", str(tmp_path / "model"), "--output", str(tmp_path / "out")),
        *("--seeds", "0", "1", "--epochs", "2", *FLAGS, "--seed", "42", "--num_train_epochs", "9"),
    ]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_from_stores_to_table_and_figure(arguments, tmp_path, capsys, monkeypatch):
    supervision_modes.main(arguments)
    assert "labels of one random layer" in capsys.readouterr().out
    result = json.loads((tmp_path / "out/supervision_modes.json").read_text())
    assert [(run["mode"], run["seed"]) for run in result["runs"]] == [
        (mode, seed) for mode in ("all", "random") for seed in (0, 1)
    ]
    # 20 samples in batches of 8 are 3 passes, twice
    assert result["passes"] == {"2": 6} and (result["fitted"], result["held_out"]) == (20, 14)
    assert result["pass_flops"]["all"] > 1
    states = {
        name: json.loads((tmp_path / f"out/gates/{name}/trainer_state.json").read_text())
        for name in ("all-2ep-seed0", "random-2ep-seed0")
    }
    assert {state["global_step"] for state in states.values()} == {6}, "the same number of passes"
    curves = {str(run["changed"]) + str(run["saved"]) for run in result["runs"]}
    assert len(curves) == 4, "mode and seed change the gates"

    def refuse(*_):
        raise AssertionError("gates were fitted again")

    monkeypatch.setattr(gate_grid.fit_gates, "main", refuse)
    before = contents(tmp_path / "out")
    supervision_modes.main(arguments)
    assert contents(tmp_path / "out") == before


def test_random_touches_only_the_layers_that_it_draws(arguments, tmp_path):
    few = [*arguments, "--max_steps", "1", "--weight_decay", "0", "--max_grad_norm", "1e9"]
    supervision_modes.main(few)
    gates = {
        mode: ExitGates.from_pretrained(tmp_path / f"out/gates/{mode}-2ep-seed0")
        for mode in ("all", "random")
    }
    drawn = step_layer(0, 0, LAYERS)
    same = [
        torch.allclose(_logits(gates["all"], layer), _logits(gates["random"], layer), atol=1e-6)
        for layer in range(LAYERS)
    ]
    # with one step, the drawn layer learns the same in both ways, the others learn only with the labels of all
    assert same == [layer == drawn for layer in range(LAYERS)]
    assert json.loads((tmp_path / "out/supervision_modes.json").read_text())["passes"] == {"2": 1}


def _logits(gates, layer):
    """Of one gate on fixed states."""
    return gates(layer, torch.linspace(-1, 1, 2 * HIDDEN)[None]).detach()
