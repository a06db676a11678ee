"""Image files, damaged in every way: an RGB image of bounded size, or one line that names the file."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image, features

from dyvte.engine.images import KEPT_PIXELS, MAX_ASPECT, load_image
from tests.robustness.inputs import examine, many, right_or_refused

KINDS = [
    ("RGB", "JPEG", {}),
    ("CMYK", "JPEG", {}),
    ("L", "JPEG", {"progressive": True}),
    ("RGB", "PNG", {}),
    ("P", "PNG", {"transparency": 0}),
    ("I;16", "PNG", {}),
    ("RGBA", "PNG", {}),
    ("1", "PNG", {}),
    ("P", "GIF", {}),
    ("RGB", "BMP", {}),
    ("RGB", "TIFF", {}),
    ("F", "TIFF", {}),
    ("CMYK", "TIFF", {"compression": "tiff_lzw"}),
    ("RGB", "PPM", {}),
    ("RGBA", "TGA", {"compression": "tga_rle"}),
    ("RGBA", "ICO", {}),
    *[("RGBA", "WEBP", {})] * features.check("webp"),
    *[("RGB", "AVIF", {"speed": 10})] * features.check("avif"),
    *[("RGB", "JPEG2000", {})] * features.check("jpg_2000"),
]


@pytest.fixture(scope="module")
def encoded():
    """A small file of each kind."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    files = []
    for mode, kind, options in KINDS:
        image = Image.fromarray(noise)
        if mode == "I;16":
            image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
        image = image if image.mode == mode else image.convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files


changes = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "put", "drop"]),
        st.floats(0, 1) | st.floats(0, 0.1),
        st.binary(max_size=4),
    ),
    max_size=4,
)


def damaged(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, new in changes:
        at = int(where * len(content))
        if kind == "cut":
            content = content[:at]
        else:
            kept = 0 if kind == "put" else len(new)
            content = content[:at] + (b"" if kind == "drop" else new) + content[at + kept :]
    return content


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of tags that are cut
@many(1000)
def test_damaged_files(tmp_path, encoded, examples):
    path, loaded = tmp_path / "image.jpg", []

    def check(drawn):
        number, changed = drawn
        path.write_bytes(damaged(encoded[number], changed))
        with right_or_refused(str(path)):
            image = load_image("image.jpg", tmp_path)
            assert image.mode == "RGB" and 0 < image.width * image.height <= KEPT_PIXELS
            assert max(image.size) <= MAX_ASPECT * min(image.size)
            loaded.append(number)

    examine(examples, st.tuples(st.integers(0, len(encoded) - 1), changes), check)
    assert len(set(loaded)) == len(encoded), "of some kind, no file was read"
