"""Small benchmarks on disk, and records as an evaluation would write them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dyvte.report.record import ResultRecord


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def files():
    """The two writers, for tests to use."""

    class Files:
        json = staticmethod(write_json)
        lines = staticmethod(write_lines)

    return Files


@pytest.fixture
def make_record():
    """Make a record; any field can be given."""
    plain = ResultRecord(
        benchmark="gqa",
        model="tiny",
        method="none",
        settings={"threshold": "0.5"},
        metric="accuracy",
        variant="",
        score=80.0,
        parts={"accuracy": 80.0},
        remarks=0,
        skipped=0,
        num_samples=10,
        num_layers=4,
        exit_layers={"none": 10},
        mean_exit_layer=4.0,
        tflops=10.0,
        decoder_tflops=8.0,
        seconds=0.5,
        prompt_tokens=60.0,
        visual_tokens=36.0,
        batch_check={"checked": 0, "differ": 0},
        commit="0" * 40,
        dirty=False,
        command="gqa.sh",
        created="2025-01-01T00:00:00+00:00",
        versions={"python": "3.11"},
        hardware={"cpu": "one", "cores": 2, "gpus": []},
        data_sha256={"questions.json": "00"},
    )

    def make(**changes: Any) -> ResultRecord:
        return replace(plain, **changes)

    return make
