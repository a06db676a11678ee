"""Every example runs from a checkout, and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRINTS = {
    "01_attach": ["fixed exit layers: [1, 1]", "[[11, 7], [11, 7], [7, 3], [7, 3]]", "exit probabilities"],
    "02_ask": ["exit: ", "prefill: "],
    "03_new_method": ["[[11, 7], [11, 7], [9, 5], [9, 5]]"],
    "04_train_gates": ["epoch 19: loss 0.", "exit layers: "],
}


def test_all_examples_are_tested():
    assert sorted(PRINTS) == sorted(path.stem for path in (ROOT / "examples").glob("0*.py"))


@pytest.mark.parametrize("name", PRINTS)
def test_example(name):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / f"examples/{name}.py"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for expected in PRINTS[name]:
        assert expected in done.stdout
