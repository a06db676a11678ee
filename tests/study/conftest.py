"""A small random checkpoint, gates for it, and a few questions in GQA's layout."""

from __future__ import annotations

import pytest
import torch

from tests.fixtures.checkpoints import SIZES

QUESTIONS = 10
BATCH = 4


@pytest.fixture(scope="session")
def gate_folder(tmp_path_factory):
    """Random gates for the checkpoint, scaled so that questions exit at different layers."""
    from dyvte import ExitGates

    torch.manual_seed(5)
    gates = ExitGates(SIZES["num_hidden_layers"], SIZES["hidden_size"], width=16)
    for parameter in gates.parameters():
        parameter.data.mul_(8)
    folder = tmp_path_factory.mktemp("gates")
    gates.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gqa(tmp_path_factory):
    """A folder in GQA's layout."""
    from dyvte.tiny.sets.gqa import write_gqa

    folder = tmp_path_factory.mktemp("gqa")
    write_gqa(folder, QUESTIONS)
    return folder


@pytest.fixture(scope="session")
def flags(checkpoint, gqa):  # noqa: F811
    """What every study's command line gets."""
    return [
        *("gqa", "--data-dir", str(gqa), "--model-path", str(checkpoint), "--conv-mode", "vicuna_v1"),
        *("--temperature", "0", "--max_new_tokens", "6", "--batch-size", str(BATCH), "--device", "cpu"),
    ]
