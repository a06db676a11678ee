"""The splice: features in place of sentinels, and a mask that says where."""

from __future__ import annotations

import pytest
import torch

from llava.model.llava_arch import splice, unpad_image
from tests.conftest import PATCHES

IMAGE, IGNORE = -200, -100
D = 6


@pytest.fixture
def embed():
    torch.manual_seed(0)
    return torch.nn.Embedding(50, D)


def plain(ids, features, embed):
    """One row, token by token."""
    rows, visual = [], []
    features = list(features)
    for token in ids:
        part = features.pop(0) if token == IMAGE else embed(torch.tensor([token]))
        rows.append(part)
        visual += [token == IMAGE] * len(part)
    return torch.cat(rows), torch.tensor(visual)


ROWS = ([1, IMAGE, 5, 6], [1, 7], [1, IMAGE, 8, IMAGE], [IMAGE, 9, 10, 11, 12, 13])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dummies", [False, True])
def test_rows_equal_a_plain_splice(embed, side, dummies):
    features = [torch.randn(n, D) for n in (3, 2, 4, 1)]
    given = features[:1] + [torch.randn(9, D)] + features[1:] if dummies else features
    wide = max(map(len, ROWS))
    ids, mask = torch.zeros(4, wide, dtype=torch.long), torch.zeros(4, wide, dtype=torch.long)
    for i, row in enumerate(ROWS):  # the input's own padding may be on either side
        at = slice(0, len(row)) if i % 2 else slice(wide - len(row), wide)
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    labels = torch.where(ids > 5, ids, IGNORE)
    out = splice(ids, given, embed, attention_mask=mask, labels=labels, padding_side=side)
    own = iter(features)
    for i, row in enumerate(ROWS):
        expected, visual = plain(row, [next(own) for token in row if token == IMAGE], embed)
        real = out.attention_mask[i]
        assert real.sum() == len(expected)
        assert real[-1] if side == "left" else real[0]
        assert torch.equal(out.inputs_embeds[i][real], expected)
        assert torch.equal(out.visual_mask[i][real], visual)
        assert not out.visual_mask[i][~real].any() and (out.labels[i][~real] == IGNORE).all()
        assert out.positions[i][real].tolist() == list(range(len(expected)))
        assert out.labels[i][real][~visual].tolist() == [t if t > 5 else IGNORE for t in row if t != IMAGE]
        assert (out.labels[i][real][visual] == IGNORE).all()


def test_truncation_cuts_every_row(embed):
    ids = torch.tensor([[1, IMAGE, 5, 6], [1, 2, 3, 4]])
    out = splice(ids, [torch.randn(3, D)], embed, max_length=3)
    assert out.inputs_embeds.shape == (2, 3, D)
    assert out.visual_mask.tolist() == [[False, True, True], [False] * 3]


def test_counts_that_do_not_match_are_refused(embed):
    ids = torch.tensor([[1, IMAGE, IMAGE]])
    for count in (0, 1, 3):
        with pytest.raises(ValueError, match=f"2 <image> tokens, but {count} images"):
            splice(ids, [torch.randn(2, D)] * count, embed)
    with pytest.raises(ValueError, match="padding_side"):
        splice(ids, [torch.randn(2, D)] * 2, embed, padding_side="both")


@torch.no_grad()
def test_six_tuple_says_none_where_the_caller_did(llava, prompts):
    inputs = prompts.ours("right")
    ids, mask, images = inputs["input_ids"], inputs["attention_mask"], inputs["images"]
    out = llava.prepare_inputs_labels_for_multimodal(ids, None, mask, None, None, images)
    spliced = llava.splice_images(ids, mask, None, images)
    assert out[0] is None and out[1] is None and out[3] is None and out[5] is None
    assert out[2].dtype == mask.dtype and torch.equal(out[2].bool(), spliced.attention_mask)
    assert torch.equal(out[4], spliced.inputs_embeds)
    untouched = llava.prepare_inputs_labels_for_multimodal(ids, None, mask, None, None, None)
    assert untouched[0] is ids and untouched[4] is None


@torch.no_grad()
@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_unpad"])
def test_tiles_merge_as_llava_does(llava, merge, monkeypatch):
    """A 2 x 1 grid of tiles (wide, unpadded) against a map built by hand."""
    config, side = llava.config, 2
    monkeypatch.setattr(config, "mm_patch_merge_type", merge, raising=False)
    monkeypatch.setattr(config, "image_grid_pinpoints", [[56, 28], [28, 56]], raising=False)
    newline = torch.nn.Parameter(torch.randn(config.hidden_size))
    monkeypatch.setattr(llava.model, "image_newline", newline, raising=False)
    tiles = torch.randn(3, 3, 28, 28)
    base, left, right = llava.encode_images(tiles)
    [merged] = llava.image_features([tiles], image_sizes=[(56, 28)])
    if merge == "flat":
        assert torch.equal(merged, torch.cat([base, left, right]))
        return
    rows = []
    for y in range(side):
        rows += [left[y * side : (y + 1) * side], right[y * side : (y + 1) * side]]
        if merge == "spatial_unpad":
            rows.append(newline[None])
    torch.testing.assert_close(merged, torch.cat([base, *rows]))
    [single] = llava.image_features([tiles[:1]], image_sizes=[(28, 28)])
    assert len(single) == PATCHES + (merge == "spatial_unpad")
    with pytest.raises(ValueError, match="image_sizes"):
        llava.image_features([tiles])


@torch.no_grad()
def test_more_tiles_than_anyres_max_allows_are_made_smaller(llava, monkeypatch):
    """As in LLaVA-NeXT: the unpadded map is scaled to about N tiles, where it has more than 1.1^2 times as many."""
    config, newline = llava.config, torch.nn.Parameter(torch.randn(llava.config.hidden_size))
    for name, value in (
        ("mm_patch_merge_type", "spatial_unpad"),
        ("image_grid_pinpoints", "(1x1),...,(3x3)"),
    ):
        monkeypatch.setattr(config, name, value, raising=False)
    monkeypatch.setattr(llava.model, "image_newline", newline, raising=False)
    tiles = torch.randn(10, 3, 28, 28)  # the whole image, and 3 x 3 tiles of 2 x 2 features
    size = (84, 84)

    def features(aspect: str) -> torch.Tensor:
        monkeypatch.setattr(config, "image_aspect_ratio", aspect, raising=False)
        return llava.image_features([tiles], image_sizes=[size])[0]

    whole = features("anyres")
    assert whole.shape[0] == 4 + 6 * 7 and torch.equal(whole, features("anyres_max_9"))
    assert torch.equal(whole, features("anyres_max_8"))  # 6 / sqrt(32) is less than 1.1
    fewer = features("anyres_max_4")  # 6 / sqrt(16) = 1.5: 4 x 4
    assert fewer.shape[0] == 4 + 4 * 5
    grid = whole[4:].view(6, 7, -1)[:, :6].permute(2, 0, 1)
    smaller = torch.nn.functional.interpolate(grid[None], (4, 4), mode="bilinear")[0].permute(1, 2, 0)
    torch.testing.assert_close(fewer[4:].view(4, 5, -1)[:, :4], smaller)
    assert torch.equal(fewer[4:].view(4, 5, -1)[:, 4], newline.expand(4, -1))


@pytest.mark.parametrize(("size", "kept"), [((100, 50), (4, 8)), ((50, 100), (8, 4)), ((30, 30), (8, 8))])
def test_unpad_keeps_the_image(size, kept):
    assert tuple(unpad_image(torch.zeros(1, 8, 8), size).shape[1:]) == kept


@torch.no_grad()
def test_bfloat16_on_cpu(prompts, gates, tower_folder, llava):
    import copy

    from dyvte import LearnedExit, attach

    model = copy.deepcopy(llava).to(torch.bfloat16)
    inputs = prompts.ours()
    inputs["images"] = inputs["images"].to(torch.bfloat16)
    with attach(model, LearnedExit(gates)) as handle:
        tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert tokens.shape[0] == len(prompts) and any(
        layer is not None for layer in handle.traces[-1].exit_layers
    )
