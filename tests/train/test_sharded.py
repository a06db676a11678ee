"""Models that several processes share, or that accelerate spreads over devices: everything equals one process's.

The processes are real ones, under torchrun, over gloo.
"""

from __future__ import annotations

import pytest

from tests.train.test_gate_runs import assert_same, gate_flags, run
from llava.train.train import train

MORE = ("--group_by_modality_length", "True", "--save_strategy", "no")
"""Text-only samples fall unevenly on the processes."""


@pytest.fixture(scope="module")
def alone(llava_model, instruction_data, tmp_path_factory):
    """Gates that one process trains, eight samples a step."""
    output = tmp_path_factory.mktemp("sharded") / "alone"
    train(argv=gate_flags(llava_model, instruction_data, output, *MORE, "--per_device_train_batch_size", "8"))
    return output


def test_processes_that_share_the_model_train_the_same_gates(alone, llava_model, instruction_data, tmp_path):
    run(gate_flags(llava_model, instruction_data, tmp_path, *MORE, "--shard_model", "True"), processes=2)
    assert_same(alone, tmp_path, tolerance=1e-6)
