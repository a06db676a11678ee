"""Experiments on the shipped Tiny-LLaVA."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from dyvte.reproduce.work import ROOT
from tests.reproduce.test_runner import state
from tests.scripts.test_end_to_end import TINY, bash


def reproduce(*arguments: object) -> str:
    """Run experiments as a person does; what they say."""
    command = [sys.executable, "-m", "dyvte.reproduce", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_figure_and_a_table(tmp_path):
    settings = ("--out", tmp_path / "my out", "--questions", 3, "--benchmarks", "gqa")
    assert "GQA, dyvte" in reproduce("figure6", *settings)
    assert (tmp_path / "my out/figures/tiny-model/figure6.png").stat().st_size > 1000
    shown = reproduce("table2", TINY / "model", *settings)
    assert "DyVTE" in shown and shown.count("kept: ") == 2, "both need the same evaluations"
    assert (tmp_path / "my out/tables/table2.csv").is_file()
    assert "table2: kept" in reproduce("table2", TINY / "model", *settings)


@pytest.mark.slow
def test_all_interrupted_and_gone_on(tmp_path):
    settings = {"STEPS": "table2 figure7", "QUESTIONS": "12", "LIMIT": "2", "OUT": str(tmp_path / "out")}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **settings}
    line = ["bash", str(ROOT / "scripts/reproduce/all.sh")]
    run = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted = tmp_path / "out/results/tiny-model/gqa/none/record.json"
    until = time.monotonic() + 300
    while not wanted.exists() and time.monotonic() < until:
        time.sleep(0.2)
    run.terminate()
    assert run.wait(timeout=60) == 130 and wanted.exists()
    assert not (tmp_path / "out/report.html").exists()
    assert bash("reproduce/all.sh", **settings).stdout.count("  done in") == 2
    page = (tmp_path / "out/report.html").read_text()
    assert all(f'id="{name}"' in page for name in ("table2", "examples")) and str(TINY) not in page
    before = state(tmp_path / "out")
    done = bash("reproduce/all.sh", **settings)
    assert done.stdout.count("  kept\n") == 2 and state(tmp_path / "out") == before
