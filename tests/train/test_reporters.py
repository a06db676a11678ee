"""What gate training logs reaches the reporter that ``--report_to`` names: tensorboard's files, wandb's run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llava.train.train import train
from tests.train.test_gate_runs import gate_flags


def train_gates(monkeypatch, model: str, data, folder: Path, reporter: str) -> None:
    """Four steps, of which the second and the last are logged."""
    more = ["--report_to", reporter, "--max_steps", "4", "--save_strategy", "no"]
    monkeypatch.setattr(sys, "argv", ["train", *gate_flags(model, data, folder, *more)])
    train()


def test_gate_training_reports_to_tensorboard(llava_model, instruction_data, tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_gates(monkeypatch, llava_model, instruction_data, tmp_path, "tensorboard")
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    read = events.EventAccumulator(str(file.parent))
    read.Reload()
    assert [event.step for event in read.Scalars("train/loss")] == [2, 4]
    assert any("label_rate" in name for name in read.Tags()["scalars"]), read.Tags()["scalars"]


def test_gate_training_reports_to_wandb(llava_model, instruction_data, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train_gates(monkeypatch, llava_model, instruction_data, tmp_path / "out", "wandb")
    try:
        summary = dict(wandb.run.summary)
        assert summary["train/global_step"] == 4 and summary["train/loss"] > 0, summary
        assert any("label_rate" in name for name in summary), summary
    finally:
        wandb.finish()
    assert list(tmp_path.rglob("run-*.wandb"))
