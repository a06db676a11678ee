"""Thresholds from a calibration set: what they read, and whether the promise holds on fresh data."""

import json

import numpy as np
import pytest
from scipy.stats import binom

from dyvte import ExitGates, LearnedExit
from dyvte.gates.calibration import Outcomes, threshold_for_change, threshold_for_cost

LAYERS = 6


def draw(rng, samples):
    """Gates that know something: an exit is the safer the later it comes and the surer the gate is."""
    ease = rng.random(samples)
    safe = rng.random((LAYERS, samples)) < 0.6 * ease + 0.07 * np.arange(LAYERS)[:, None]
    probabilities = np.clip(0.5 * safe + 0.5 * rng.random((LAYERS, samples)), 0, 1)
    return Outcomes(probabilities, safe, np.arange(1.0, LAYERS + 2)[:, None].repeat(samples, 1))


def test_exits_costs_and_changes_are_those_of_a_plain_loop():
    outcomes = draw(np.random.default_rng(0), 50)
    outcomes.probabilities[2, :5] = np.nan
    for threshold in (0.0, 0.3, 0.77, 0.95, 1.0):
        changed, cost = 0, 0.0
        for sample in range(50):
            fired = [layer for layer in range(LAYERS) if outcomes.probabilities[layer, sample] > threshold]
            layer = fired[0] if fired else LAYERS
            assert outcomes.exits(threshold)[sample] == layer
            changed += layer < LAYERS and not outcomes.kept[layer, sample]
            cost += outcomes.costs[layer, sample]
        assert outcomes.changed(threshold) == changed
        assert outcomes.cost(threshold) == pytest.approx(cost / 50)
    assert outcomes.changed(1.0) == 0 and outcomes.changed(0.0) > 0


@pytest.mark.parametrize("most_changed", [0.05, 0.15])
def test_promise_holds_on_fresh_data_over_many_seeds(most_changed):
    """At most 5% of calibrations may break the promise: 200 of them, judged on 20 000 fresh samples."""
    fresh = draw(np.random.default_rng(10_000), 20_000)
    true_risk = {}
    broken, useful = 0, 0
    for seed in range(200):
        threshold = threshold_for_change(draw(np.random.default_rng(seed), 200), most_changed)
        if threshold not in true_risk:
            true_risk[threshold] = fresh.changed(threshold) / 20_000
        broken += true_risk[threshold] > most_changed
        useful += threshold < 0.99
    assert broken <= binom.ppf(0.999, 200, 0.05)
    assert useful > 150, "a threshold that never lets anything exit would keep any promise"


def test_a_promise_from_few_samples_is_no_exit():
    few = draw(np.random.default_rng(1), 10)
    assert threshold_for_change(few, 0.05) == 1.0  # 0 of 10 changed says nothing about 5%
    assert threshold_for_change(draw(np.random.default_rng(1), 1000), 0.05) < 1.0
    assert threshold_for_change(draw(np.random.default_rng(1), 1000), 0.0) == 1.0


def test_budget():
    outcomes = draw(np.random.default_rng(2), 100)
    threshold = threshold_for_cost(outcomes, 4.0)
    assert outcomes.cost(threshold) <= 4.0 < outcomes.cost(threshold + 0.001)
    with pytest.raises(ValueError, match="cannot be reached; exits at once cost 1"):
        threshold_for_cost(outcomes, 0.5)


@pytest.mark.parametrize(("share", "confidence"), [(-0.1, 0.95), (1.0, 0.95), (0.1, 1.0), (0.1, 0.0)])
def test_nonsense_is_refused(share, confidence):
    with pytest.raises(ValueError, match="most_changed"):
        threshold_for_change(draw(np.random.default_rng(0), 9), share, confidence)
    with pytest.raises(ValueError, match="outcomes need arrays"):
        Outcomes(np.zeros((3, 2)), np.zeros((3, 2), bool), np.zeros((3, 2)))


def test_calibration_is_saved_with_the_gates(tmp_path):
    gates = ExitGates(3, 32, width=8)
    assert gates.threshold == LearnedExit(gates).threshold == 0.5
    gates.calibration = {"threshold": 0.875, "target": "x"}
    gates.save_pretrained(tmp_path)
    again = ExitGates.from_pretrained(tmp_path)
    assert again.calibration == gates.calibration
    assert LearnedExit(again).threshold == 0.875 and LearnedExit(again, threshold=0.5).threshold == 0.5
    content = json.loads((tmp_path / "gates.json").read_text())
    assert content["calibration"]["threshold"] == 0.875
