"""Stages and oracle exits, on numbers whose answer is plain to see."""

from __future__ import annotations

import numpy as np
import pytest

from dyvte.study.oracle import OracleStudy, oracle_exits
from dyvte.study.run import evenly_spaced
from dyvte.study.stages import find_stages


def test_steps_are_found_where_they_are():
    cross = [0.6, 0.6, 0.1, 0.1, 0.1, 0.3, 0.3]
    image_self = [0.5, 0.5, 0.9, 0.9, 0.9, 0.7, 0.7]
    stages = find_stages(image_self, cross)
    assert stages is not None and stages.starts == (2, 5) and stages.explained == pytest.approx(1)
    assert stages.cross == pytest.approx((0.6, 0.1, 0.3)) and stages.as_in_paper
    for one_way in (sorted(cross), sorted(cross, reverse=True)):
        stages = find_stages(image_self, one_way)
        assert stages is not None and not stages.as_in_paper


def test_stages_are_those_of_least_squares():
    """A search by plain loops gives the same cut."""
    curves = np.random.default_rng(1).normal(size=(2, 9)).cumsum(1)
    stages = find_stages(*curves)
    scaled = [(c - c.mean()) / c.std() for c in curves]
    errors = {}
    for first in range(1, 8):
        for second in range(first + 1, 9):
            runs = [c[a:b] for c in scaled for a, b in ((0, first), (first, second), (second, 9))]
            errors[first, second] = sum(float(((run - run.mean()) ** 2).sum()) for run in runs)
    best = min(errors, key=lambda cut: errors[cut])
    assert stages is not None and stages.starts == best
    assert stages.explained == pytest.approx(1 - errors[best] / 18)


@pytest.mark.parametrize("cross", [[0.1, 0.2], [0.1, 0.2, float("nan"), 0.3]])
def test_no_stages_without_a_value_at_every_layer(cross):
    assert find_stages([0.5] * len(cross), cross) is None


def test_flat_curves_have_nothing_to_explain():
    stages = find_stages([0.5] * 4, [0.5] * 4)
    assert stages is not None and stages.starts == (1, 2) and not stages.as_in_paper


def test_oracle_exit_is_the_first_layer_from_which_all_labels_are_one():
    labels = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 0]], dtype=bool)
    assert oracle_exits(labels).tolist() == [0, 2, 1, 3, 3]


def test_questions_that_cannot_exit_count_as_all_layers():
    labels = np.array([[0, 1], [1, 1]], dtype=bool)
    kept, has_exit = np.array([[0, 1], [0, 0]], dtype=bool), np.array([True, False])
    study = OracleStudy({}, np.array(["a", "b"]), labels, kept, has_exit)
    assert study.exit_layers.tolist() == [1, 2]
    assert study.unchanged.tolist() == [50, 100], "without an image there is nothing to change"


def test_a_limit_takes_questions_from_the_whole_file():
    assert evenly_spaced(list(range(10)), 4) == [0, 2, 5, 7]  # type: ignore[arg-type]
    assert evenly_spaced(list(range(3)), 4) == [0, 1, 2]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive"):
        evenly_spaced([], 0)
