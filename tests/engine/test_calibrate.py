"""Calibration of a model's gates: what it foresees must be what then happens."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from dyvte import ExitGates, LearnedExit, NoExit
from dyvte.engine import exit_times
from dyvte.engine.calibrate import build_parser, calibrate, main, observe, read_items
from dyvte.engine.options import open_answerer
from dyvte.engine.run import prepared_batches
from llava.model.builder import load_pretrained_model

COUNT = 9
TOKENS = 5


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Instruction data about nine images, and one record that has none."""
    folder = tmp_path_factory.mktemp("calibration")
    records = []
    for index in range(COUNT):
        Image.new("RGB", (28, 28), (28 * index, 99, 255 - 28 * index)).save(folder / f"{index}.png")
        turns = [
            {"from": "human", "value": "<image>\nWhat colour" + " ball" * index},
            {"from": "gpt", "value": "red"},
        ]
        records.append({"id": index, "image": f"{index}.png", "conversations": turns})
    records.insert(4, {"id": "text", "conversations": turns})
    (folder / "sample.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
    """Gates that disagree with each other; the checkpoint's weights are scaled so that exits change answers."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("gates")
    made = ExitGates(3, 32, width=8)
    for parameter in made.parameters():
        parameter.data.mul_(6)
    made.save_pretrained(folder)
    return folder


def arguments(checkpoint, sample, gates, *more):
    given = ["--model-path", checkpoint, "--gates", gates, "--data-path", sample / "sample.json"]
    given += ["--image-folder", sample, "--max_new_tokens", TOKENS, "--batch-size", 4, *more]
    return build_parser().parse_args([str(value) for value in given])


def test_foreseen_exits_changes_and_costs_happen(checkpoint, sample, gates):
    args = arguments(checkpoint, sample, gates)
    answerer = open_answerer(args, args.conv_mode)
    for parameter in answerer.model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3)
    learned = answerer.handle.policy.gates
    items = read_items(args.data_path)
    assert len(items) == COUNT
    answerer.handle.policy = NoExit()
    outcomes = observe(answerer, learned, items, str(sample), 4)

    def answers(policy):
        answerer.handle.policy = policy
        batches = prepared_batches(items, COUNT, answerer.chat, str(sample))
        return [answer for _, batch in batches for answer in answerer.complete(batch)]

    plain = answers(NoExit())
    seen = set()
    for threshold in (0.0, 0.2, 0.5, 0.8, 0.99):
        exited = answers(LearnedExit(learned, threshold))
        layers = [3 if a.report.exit_layer is None else a.report.exit_layer for a in exited]
        assert outcomes.exits(threshold).tolist() == layers
        assert outcomes.changed(threshold) == sum(
            a.text != b.text for a, b in zip(plain, exited, strict=True)
        )
        mean = sum(answer.report.tflops for answer in exited) / COUNT
        assert outcomes.cost(threshold) == pytest.approx(mean)
        seen.add(outcomes.changed(threshold))
    assert len(seen) > 1, "exits that never change anything show nothing"


def test_command_saves_the_threshold_beside_the_gates(checkpoint, sample, gates, tmp_path, capsys):
    out = tmp_path / "calibrated"
    args = vars(arguments(checkpoint, sample, gates))
    argv = []
    for name in ("model_path", "gates", "data_path", "image_folder", "max_new_tokens"):
        argv += [f"--{name if name == 'max_new_tokens' else name.replace('_', '-')}", str(args[name])]
    main([*argv, "--budget", "0.98", "--output", str(out)])
    saved = ExitGates.from_pretrained(out)
    assert saved.calibration["samples"] == COUNT and "98%" in saved.calibration["target"]
    assert f"threshold {saved.threshold:.3f}" in capsys.readouterr().out
    assert saved.calibration["cost"] <= 0.98 * saved.calibration["full_cost"]
    weights = saved.state_dict(), ExitGates.from_pretrained(gates).state_dict()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    _, model, _, _ = load_pretrained_model(str(checkpoint), None, "llava", device="cpu", gates=str(out))
    assert model.exit_handle.policy.threshold == saved.threshold
    main([*argv, "--max-changed", "0.05", "--output", str(out)])
    assert ExitGates.from_pretrained(out).threshold == 1.0  # nine answers promise nothing


def test_milliseconds_by_exit_layer():
    seconds = {exit_times.NEVER: 0.100, exit_times.AT_ONCE: 0.040, exit_times.ASKED: 0.106}
    # 20 ms saved by each layer without image, 1.5 ms for each gate, two samples
    expected = [41.5, 63.0, 84.5, 106.0, 106.0]
    assert exit_times.by_exit_layer(seconds, 4, 2) == pytest.approx([ms / 2 for ms in expected])


def test_budget_in_milliseconds(checkpoint, sample, gates, tmp_path, monkeypatch):
    """The clock is made, what is measured with it is the model: exits after layer 0 halve a prefill."""

    def measured(chat, learned, batch):
        real = measure(chat, learned, batch, rounds=1)
        assert (
            set(real) == {exit_times.NEVER, exit_times.AT_ONCE, exit_times.ASKED} and min(real.values()) > 0
        )
        assert isinstance(chat.handle.policy, NoExit)
        return {exit_times.NEVER: 0.4, exit_times.AT_ONCE: 0.2, exit_times.ASKED: 0.4}

    measure = exit_times.measure
    monkeypatch.setattr(exit_times, "measure", measured)
    result = calibrate(arguments(checkpoint, sample, gates, "--budget-ms", 90, "--output", tmp_path))
    assert result.unit == "ms" and result.full_cost == pytest.approx(100) and 50 <= result.cost <= 90
    with pytest.raises(ValueError, match="cannot be reached"):
        calibrate(arguments(checkpoint, sample, gates, "--budget-ms", 10, "--output", tmp_path))


def test_bad_requests(checkpoint, sample, gates, tmp_path):
    with pytest.raises(ValueError, match="one of --max-changed"):
        calibrate(arguments(checkpoint, sample, gates))
    with pytest.raises(ValueError, match="one of --max-changed"):
        calibrate(arguments(checkpoint, sample, gates, "--budget", "0.5", "--max-changed", "0.1"))
    args = arguments(checkpoint, sample, gates, "--budget", "0.5")
    args.gates = None
    with pytest.raises(ValueError, match="no gates to calibrate"):
        calibrate(args)
    (tmp_path / "none.json").write_text(json.dumps([{"conversations": []}]))
    with pytest.raises(ValueError, match="holds no sample"):
        read_items(str(tmp_path / "none.json"))
