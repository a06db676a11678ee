"""Images: files of every kind to RGB, and RGB to pixels, against numpy and PIL."""

from __future__ import annotations

import base64
import http.client
import io
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import llava.mm_utils as mm_utils
from dyvte.engine import images
from dyvte.engine.images import load_image, to_rgb
from llava.mm_utils import (
    expand2square,
    get_anyres_image_grid_shape,
    load_image_from_base64,
    process_images,
    resize_and_pad_image,
    select_best_resolution,
)

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture
def processor():
    return CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


def noise(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def normalised(image):
    """(3, H, W) of a PIL image that has its final size."""
    return ((np.asarray(image, dtype=np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(40, 24), (24, 40), (31, 31), (45, 20), (1, 1), (1, 60), (60, 1)])
def test_pad_matches_numpy(size, processor):
    image = noise(*size)
    side = max(size)
    canvas = np.tile(np.array([122, 116, 104], dtype=np.uint8), (side, side, 1))
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    canvas[top : top + size[1], left : left + size[0]] = np.asarray(image)
    expected = normalised(Image.fromarray(canvas).resize((28, 28), Image.Resampling.BICUBIC))
    pixels = process_images([image], processor, SimpleNamespace(image_aspect_ratio="pad"))
    np.testing.assert_allclose(pixels[0].numpy(), expected, atol=2e-6)


def test_plain_crops_the_centre(processor):
    image = noise(56, 28)
    expected = normalised(image.crop((14, 0, 42, 28)))
    for config in (SimpleNamespace(), SimpleNamespace(image_aspect_ratio=None)):
        pixels = process_images([image, image], processor, config)
        assert pixels.shape == (2, 3, 28, 28)
        np.testing.assert_allclose(pixels[1].numpy(), expected, atol=2e-6)


def test_anyres_tiles(processor):
    image = noise(50, 30)
    points = [(28, 56), (56, 28), (56, 56)]
    config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=str(points))
    assert select_best_resolution(image.size, points) == (56, 56)
    height = math.ceil(30 * 56 / 50)
    canvas = Image.new("RGB", (56, 56))
    canvas.paste(image.resize((56, height)), (0, (56 - height) // 2))
    boxes = [(0, 0, 28, 28), (28, 0, 56, 28), (0, 28, 28, 56), (28, 28, 56, 56)]
    expected = [image.resize((28, 28))] + [canvas.crop(box) for box in boxes]
    pixels = process_images([image], processor, config)
    assert pixels.shape == (1, 5, 3, 28, 28)
    np.testing.assert_allclose(
        pixels[0].numpy(), np.stack([normalised(tile) for tile in expected]), atol=2e-6
    )
    assert get_anyres_image_grid_shape(image.size, points, 28) == (2, 2)
    mixed = process_images([image, noise(60, 20)], processor, config)
    assert isinstance(mixed, list) and [len(tiles) for tiles in mixed] == [5, 3]


def test_anyres_max_cuts_as_anyres_does(processor):
    """Ranges of tiles, as LLaVA-OneVision's configs have them, are all grids from the first to the last."""
    image = noise(50, 30)
    grids = [(across * 28, down * 28) for across in (1, 2, 3) for down in (1, 2, 3)]
    listed = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=grids)
    ranged = SimpleNamespace(image_aspect_ratio="anyres_max_4", image_grid_pinpoints="(1x1),...,(3x3)")
    assert torch.equal(process_images([image], processor, ranged), process_images([image], processor, listed))


@pytest.mark.parametrize("aspect", ["padd", "anyres_max", "anyres_max_0", "anyres_max_x", "resize", "", 5])
def test_aspects_that_do_not_exist_are_refused(aspect, processor):
    with pytest.raises(ValueError, match="square, pad, anyres or anyres_max_N"):
        process_images([noise(50, 30)], processor, SimpleNamespace(image_aspect_ratio=aspect))


@pytest.mark.parametrize(
    "points", [None, "", "[", "[(1, 2", 5, [[0, 28]], [["a", 1]], "__import__('os')", "(axb)"]
)
def test_grids_that_are_none_are_refused(points, processor):
    config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=points)
    with pytest.raises(ValueError, match="image_grid_pinpoints must be a list"):
        process_images([noise(50, 30)], processor, config)


def test_best_resolution_by_brute_force():
    points = [(w, h) for w in (336, 672, 1008) for h in (336, 672, 1008)]
    for size in [(640, 480), (100, 900), (2000, 500), (336, 336), (1, 1000)]:
        best, kept, waste = None, -1, math.inf
        for width, height in points:
            scale = min(width / size[0], height / size[1])
            effective = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
            if effective > kept or (effective == kept and width * height - effective < waste):
                best, kept, waste = (width, height), effective, width * height - effective
        assert select_best_resolution(size, points) == best


def test_resize_and_pad_stays_inside():
    for size in [(3, 1000), (1000, 3), (500, 500)]:
        assert resize_and_pad_image(noise(*size), (56, 28)).size == (56, 28)


def test_modes_become_rgb():
    deep = np.array([[0, 257, 65535]], dtype=np.uint16)
    assert np.asarray(to_rgb(Image.fromarray(deep)))[0, :, 0].tolist() == [0, 1, 255]
    wide = Image.fromarray(deep.astype(np.int32))
    assert wide.mode == "I" and np.asarray(to_rgb(wide))[0, :, 1].tolist() == [0, 1, 255]
    small = Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32))
    assert np.asarray(to_rgb(small))[0, :, 2].tolist() == [0, 7, 255]
    real = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert np.asarray(to_rgb(real))[0, :, 0].tolist() == [0, 128, 255]
    assert to_rgb(Image.new("CMYK", (2, 2), (0, 255, 255, 0))).getpixel((0, 0)) == (255, 0, 0)
    assert to_rgb(Image.new("L", (1, 1), 77)).getpixel((0, 0)) == (77, 77, 77)
    assert to_rgb(Image.new("RGBA", (1, 1), (10, 20, 30, 0))).getpixel((0, 0)) == (10, 20, 30)
    assert to_rgb(Image.new("LA", (1, 1), (9, 0))).getpixel((0, 0)) == (9, 9, 9)
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.info["transparency"] = b"\x00\x00"
    assert to_rgb(palette).getpixel((0, 0)) == (200, 100, 50)


def test_sixteen_bit_and_cmyk_files(tmp_path):
    Image.fromarray(np.full((3, 4), 32896, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert load_image("deep.png", tmp_path).getpixel((0, 0)) == (128, 128, 128)
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "print.jpg")
    loaded = load_image(tmp_path / "print.jpg")
    assert loaded.mode == "RGB" and max(loaded.getpixel((4, 4))) < 10


def test_grey_images_are_padded(processor):
    pixels = process_images(
        [Image.new("L", (9, 3), 50)], processor, SimpleNamespace(image_aspect_ratio="pad")
    )
    assert pixels.shape == (1, 3, 28, 28)
    assert expand2square(Image.new("L", (9, 3), 50), (1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "gif", "tiff"])
def test_truncated_files_are_named(tmp_path, format):
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, format="jpeg" if format == "jpg" else format)
    path = tmp_path / f"cut.{format}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ValueError, match=f"cut.{format}"):
        load_image(path)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "notes.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    for name in ("notes.jpg", "empty.jpg"):
        with pytest.raises(ValueError, match=name):
            load_image(name, tmp_path)
    for name in ("none.jpg", ""):
        with pytest.raises(FileNotFoundError, match="not found"):
            load_image(name, tmp_path)


def test_huge_files_are_refused(tmp_path, monkeypatch):
    noise(40, 40).save(tmp_path / "huge.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="huge.png.*too large"):
        load_image("huge.png", tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="huge.png"):
        load_image("huge.png", tmp_path)


def test_a_very_long_image_is_padded_within_memory(processor, monkeypatch):
    monkeypatch.setattr(mm_utils, "KEPT_PIXELS", 1_000_000)
    long = Image.new("RGB", (60000, 1), (255, 255, 255))
    square = expand2square(long, (0, 0, 0))
    assert square.size == (1000, 1000)
    assert square.getpixel((5, 499)) == (255, 255, 255)
    pixels = process_images([long], processor, SimpleNamespace(image_aspect_ratio="pad"))
    assert torch.isfinite(pixels).all()
    with pytest.raises(ValueError, match="60000x1 .*elongated"):
        process_images([long], processor, SimpleNamespace(image_aspect_ratio=None))


def test_paths_stay_inside_the_folder(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    noise(4, 4).save(folder / "sub" / "in.png")
    noise(4, 4).save(tmp_path / "out.png")
    assert load_image("sub/in.png", folder).size == (4, 4)
    assert load_image("sub/../sub/in.png", folder).size == (4, 4)
    for name in ("../out.png", str(tmp_path / "out.png"), "sub/../../out.png"):
        with pytest.raises(ValueError, match="leads out of the image folder.*symbolic link in the folder"):
            load_image(name, folder)
    assert load_image(tmp_path / "out.png").size == (4, 4)
    assert load_image(str(folder / "sub/in.png"), folder).size == (4, 4)


def test_links_in_the_folder_are_followed(tmp_path):
    """Whoever owns the folder placed them: data sets and the Hub's cache are laid out so."""
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    noise(4, 4).save(tmp_path / "elsewhere/in.png")
    noise(9, 9).save(tmp_path / "in.png")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "coco").symlink_to(tmp_path / "elsewhere")
    (folder / "link.png").symlink_to(tmp_path / "elsewhere/in.png")
    (tmp_path / "linked").symlink_to(folder)
    for root in (folder, tmp_path / "linked"):
        assert load_image("coco/in.png", root).size == load_image("link.png", root).size == (4, 4)
    # `..` in the data goes by names: not to the parent of where a link leads
    with pytest.raises(FileNotFoundError):
        load_image("coco/../in.png", folder)


def test_only_known_formats_are_opened(tmp_path):
    """An EPS by the name of a JPEG would start Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "x.jpg").write_bytes(eps)
    with pytest.raises(ValueError, match="x.jpg: it is none, or of an unknown format"):
        load_image("x.jpg", tmp_path)
    with pytest.raises(UnidentifiedImageError):
        load_image_from_base64(base64.b64encode(eps))
    (tmp_path / "lfs.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n")
    with pytest.raises(ValueError, match="lfs.jpg is a Git LFS pointer"):
        load_image("lfs.jpg", tmp_path)


def test_elongated_files_are_refused(tmp_path):
    for size in ((60000, 1), (1, 201)):
        Image.new("1", size).save(tmp_path / "long.png")
        with pytest.raises(ValueError, match=f"long.png: {size[0]}x{size[1]} pixels is too elongated"):
            load_image("long.png", tmp_path)
    Image.new("1", (200, 1)).save(tmp_path / "long.png")
    assert load_image("long.png", tmp_path).size == (200, 1)


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "RGBA", "P", "CMYK", "L", "RGB", "1"])
def test_large_images_are_reduced_in_bands(mode, monkeypatch):
    """As the whole image at once would be."""
    grey = noise(61, 47).convert("L")
    image = grey.convert(mode if mode not in ("I;16", "I") else "I")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    whole = to_rgb(image)
    monkeypatch.setattr(images, "KEPT_PIXELS", 400)
    monkeypatch.setattr(images, "_BAND", 500)
    assert to_rgb(image).size == (21, 16)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(whole.reduce(3)))


def test_addresses_with_blanks_and_without_an_answer(monkeypatch):
    asked = []

    def answer(address, timeout):
        asked.append(address)
        raise http.client.InvalidURL("no such thing")

    monkeypatch.setattr("urllib.request.urlopen", answer)
    with pytest.raises(ValueError, match="cannot read image https://h.org/a b.jpg%20c: no such thing"):
        load_image("https://h.org/a b.jpg%20c")
    assert asked == ["https://h.org/a%20b.jpg%20c"]


@pytest.mark.slow
def test_small_files_of_huge_images_take_bounded_memory_and_time(tmp_path):
    """The three files of a few kilobytes that took 3.9 GB, 2.3 GB and all there was."""
    Image.fromarray(np.zeros((13000, 13000), np.uint16)).save(tmp_path / "gray16.png")
    Image.new("RGB", (60000, 1)).save(tmp_path / "long.png")
    Image.new("RGB", (12000, 14000)).save(tmp_path / "rgb.png")
    code = (
        "import resource, sys; from types import SimpleNamespace as S; from dyvte.engine.images import load_image;"
        "from llava.mm_utils import process_images;"
        "from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as C;"
        "p = C(size={'shortest_edge': 336}, crop_size={'height': 336, 'width': 336})\n"
        "try: process_images([load_image(sys.argv[1])], p, S(image_aspect_ratio='pad'))\n"
        "except ValueError as error: print(error)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('GB', used.ru_maxrss / 1e6, 's', used.ru_utime + used.ru_stime)"
    )
    for name in ("gray16.png", "long.png", "rgb.png"):
        done = subprocess.run([sys.executable, "-c", code, tmp_path / name], capture_output=True, text=True)
        gigabytes, seconds = (float(done.stdout.split()[at]) for at in (-3, -1))
        assert gigabytes < 2 and seconds < 20, (name, done.stdout, done.stderr)


def test_base64_round_trip():
    buffer = io.BytesIO()
    noise(5, 7).save(buffer, format="png")
    assert load_image_from_base64(base64.b64encode(buffer.getvalue())).size == (5, 7)
