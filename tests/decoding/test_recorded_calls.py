"""The vision tower with its projector, replayed from graphs (a tape, on a CPU), gives what it gives."""

from __future__ import annotations

import gc

import pytest
import torch

from dyvte import LearnedExit, NoExit, attach
from dyvte.decoding.graphs import Graphs, calls
from tests.conftest import MIXED, Prompts
from tests.fixtures.tape import record


@torch.inference_mode()
@pytest.mark.parametrize("prompts", [Prompts(MIXED[0]), Prompts(MIXED[5]), Prompts(MIXED[0], MIXED[2])])
def test_features_are_those_of_the_pixels_at_hand(llava, gates, prompts):
    """Other pixels at each call; the second call of a shape records, later ones replay."""
    graphs, inputs = Graphs(record), prompts.ours()
    for turn in range(4):
        images = inputs["images"] * (1 + turn)
        plain = llava.encode_images(images)
        expected = llava.generate(**{**inputs, "images": images}, do_sample=False, max_new_tokens=3)
        with attach(llava, LearnedExit(gates, threshold=1.0), graphs):
            features = llava.encode_images(images)
            torch.testing.assert_close(features, plain)
            kept = features.clone()
            llava.encode_images(images + 1)
            assert torch.equal(features, kept)  # not the memory that the next call writes
            out = llava.generate(**{**inputs, "images": images}, do_sample=False, max_new_tokens=3)
            assert torch.equal(out, expected)
    assert graphs.replayed > graphs.recorded > 0
    assert "encode_images" not in vars(llava)


def recorded_calls(llava, images, graphs, count=2):
    before = graphs.recorded
    with torch.no_grad(), attach(llava, NoExit(), graphs):
        for _ in range(count):
            out = llava.encode_images(images)
    return out, graphs.recorded - before


def test_what_is_recorded_and_what_is_not(llava, monkeypatch):
    graphs, images = Graphs(record), torch.randn(2, 3, 28, 28)
    assert recorded_calls(llava, images, graphs, 1)[1] == 0  # the first of its shape
    assert recorded_calls(llava, images, graphs, 3)[1] == 1  # and attached again, no other recording
    assert recorded_calls(llava, torch.randn(calls.MOST_INPUTS + 1, 3, 28, 28), graphs, 3)[1] == 0
    projector = llava.model.mm_projector[0]
    plain = projector.weight.data
    projector.weight.data = plain * 2  # other memory
    out, recorded = recorded_calls(llava, images, graphs, 3)
    expected = llava.encode_images(images)
    projector.weight.data = plain
    assert recorded == 1
    torch.testing.assert_close(out, expected)
    monkeypatch.setattr(calls, "MOST_SHAPES", 2)
    graphs = Graphs(record)
    for count in (1, 2, 3, 1):
        assert recorded_calls(llava, torch.randn(count, 3, 28, 28), graphs, 2)[1] == 1
    with attach(llava, NoExit(), graphs):  # with gradients
        before = graphs.replayed
        llava.encode_images(images)
        assert graphs.replayed == before
    graphs.close()
    gc.collect()
    assert recorded_calls(llava, images, graphs, 1)[1] == 0
