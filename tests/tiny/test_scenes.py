"""Scenes: reproducible, split by writer, and showing what they say."""

import sys

import pytest
import torch

from dyvte.cli import MissingExtra
from dyvte.tiny import digits
from dyvte.tiny.scenes import CELL_SIZE, draw, render


def test_a_scene_depends_on_split_seed_and_index_alone() -> None:
    scenes = [draw("train", 5, index) for index in range(6)]
    again = draw("train", 5, 4)
    assert again == scenes[4]
    assert torch.equal(render([again])[0], render(scenes)[4])
    assert draw("train", 6, 4).things != again.things


def test_splits_share_no_digit() -> None:
    train, held_out = digits.load("train"), digits.load("eval")
    assert len(train.glyphs) + len(held_out.glyphs) == 1797
    assert len(train.glyphs) == digits.FIRST_EVALUATION_SAMPLE
    known = {glyph.numpy().tobytes() for glyph in train.glyphs}
    assert not known & {glyph.numpy().tobytes() for glyph in held_out.glyphs}
    with pytest.raises(ValueError, match="no split 'test'"):
        digits.load("test")


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def find_spec(name, path, target=None):  # noqa: N805 - called on the class
            if name == "sklearn":
                raise ModuleNotFoundError(name, name=name)

    monkeypatch.setattr(sys, "meta_path", [Missing, *sys.meta_path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtra, match=r"pip install 'dyvte\[tiny\]'"):
        digits.load.__wrapped__("train")


def test_a_form_begins_where_the_split_is() -> None:
    """Labels start over there, 0 to 9 three times, as at the beginning of the file."""
    from sklearn.datasets import load_digits

    labels = load_digits().target
    start = digits.FIRST_EVALUATION_SAMPLE
    assert (labels[start : start + 30] == labels[:30]).mean() > 0.85


def test_three_to_seven_things_in_reading_order() -> None:
    counts = set()
    for index in range(200):
        cells = [thing.cell for thing in draw("train", 0, index).things]
        assert cells == sorted(set(cells))
        counts.add(len(cells))
    assert counts == {3, 4, 5, 6, 7}


@pytest.mark.parametrize("split", digits.SPLITS)
def test_cells_with_a_thing_are_brighter_and_have_its_color(split: str) -> None:
    scenes = [draw(split, 1, index) for index in range(40)]
    pixels = render(scenes).float()
    assert pixels.shape == (40, 3 * CELL_SIZE, 3 * CELL_SIZE, 3)
    strongest = {"red": [0], "green": [1], "blue": [2], "yellow": [0, 1], "white": [0, 1, 2]}
    for scene, image in zip(scenes, pixels, strict=True):
        cells = image.view(3, CELL_SIZE, 3, CELL_SIZE, 3).transpose(1, 2).flatten(0, 1)  # cell, y, x, rgb
        brightest = cells.flatten(1, 2).amax(1)  # cell, rgb
        for cell in range(9):
            thing = next((thing for thing in scene.things if thing.cell == cell), None)
            if thing is None:
                assert brightest[cell].max() < 110
            else:
                assert brightest[cell, strongest[thing.color]].min() > 120, thing.name


def test_distortion_changes_strokes_only() -> None:
    scenes = [draw("train", 1, index) for index in range(4)]
    plain, bent = render(scenes), render(scenes, 1.5, torch.Generator().manual_seed(0))
    assert not torch.equal(plain, bent)
    for scene, before, after in zip(scenes, plain, bent, strict=True):
        for cell in set(range(9)) - {thing.cell for thing in scene.things}:
            area = (slice(cell // 3 * 24, cell // 3 * 24 + 24), slice(cell % 3 * 24, cell % 3 * 24 + 24))
            assert torch.equal(before[area], after[area])


def test_render_refuses_mixed_splits() -> None:
    with pytest.raises(ValueError, match="same split"):
        render([draw("train", 0, 0), draw("eval", 0, 0)])
