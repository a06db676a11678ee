"""What gate training logs reaches the reporter that ``--report_to`` names: tensorboard's files."""

from __future__ import annotations

import sys

import pytest

from llava.train.train import train
from tests.train.test_gate_runs import gate_flags


def test_gate_training_reports(llava_model, instruction_data, tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    more = ["--report_to", "tensorboard", "--max_steps", "4", "--save_strategy", "no"]
    flags = gate_flags(llava_model, instruction_data, tmp_path / "tensorboard", *more)
    monkeypatch.setattr(sys, "argv", ["train", *flags])
    train()
    (file,) = (tmp_path / "tensorboard").rglob("events.out.tfevents.*")
    read = events.EventAccumulator(str(file.parent))
    read.Reload()
    assert [event.step for event in read.Scalars("train/loss")] == [2, 4]
    assert any("label_rate" in name for name in read.Tags()["scalars"]), read.Tags()["scalars"]
