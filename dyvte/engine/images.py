"""Images from files, addresses and bytes, as RGB, with errors that name the image.

Called from most of the project.
"""

from __future__ import annotations

import http.client
import io
import math
import os
import urllib.parse
import urllib.request
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from dyvte.io import check_file

MAX_PIXELS = 178_956_970
"""Of a file that is decoded: where Pillow refuses one."""
KEPT_PIXELS = 64_000_000
"""Of an image in memory, and of a canvas: larger ones are made smaller. No vision tower here sees as many."""
MAX_ASPECT = 200
"""Of the longer side to the shorter one: what Qwen-VL's processors allow."""
MAX_BYTES = 1 << 28
"""Of a file from an address."""
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF"),
    *("HEIF",),  # where a plugin of that name is installed
)
"""What is tried on a file, whatever its name. Others do more than decode: EPS starts Ghostscript."""
_BAND = 1 << 20
"""Pixels that are converted at a time."""


def load_image(source: str | Path, folder: str | Path | None = None) -> Image.Image:
    """Read an image as RGB.

    Args:
        source: a path, or an http(s) address.
        folder: when given, ``source`` is a path inside this folder, and nothing outside it is read.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when the path leaves ``folder``, the address does not answer, or the file is not a whole image,
            or is too large or too elongated.
    """
    source = str(source)
    if folder is None and source.startswith(("http://", "https://")):
        return decode_image(io.BytesIO(_download(source)), source)
    path = Path(source).expanduser() if folder is None else path_inside(folder, source)
    check_file(path, "image")
    return decode_image(path, str(path))


def _download(address: str) -> bytes:
    """The file at an http(s) address; what a browser would quote in it, such as blanks, may stand as it is."""
    quoted = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    try:
        with urllib.request.urlopen(quoted, timeout=30) as response:  # noqa: S310 - the caller checked the scheme
            content = response.read(MAX_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(f"cannot read image {address}: {error}") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"cannot read image {address}: it has more than {MAX_BYTES >> 20} MB")
    return content


LONGEST_PATH, LONGEST_NAME = 4096, 255
"""Bytes that Linux takes as a path, and as one name in it; others take no more."""


def path_inside(folder: str | Path, name: str) -> Path:
    """The path of a file named relative to a folder, by its name alone: symbolic links in the folder are followed,
    wherever they lead, because whoever owns the folder placed them.

    Raises:
        ValueError: when the name leads out of the folder, or is longer than file systems take.
    """
    if len(name) > LONGEST_PATH or max(map(len, name.split("/"))) > LONGEST_NAME:
        raise ValueError(
            f"image file name of {len(name)} characters, {name[:80]!r}..., is too long for a file system"
        )
    path = Path(os.path.normpath(Path(folder).absolute() / name))
    if not path.is_relative_to(os.path.normpath(Path(folder).absolute())):
        raise ValueError(
            f"image {name!r} leads out of the image folder {folder}, so it is not read; to allow it, place a "
            "symbolic link in the folder and name that, or choose a folder above"
        )
    return path


def open_image(file: Path | IO[bytes], max_pixels: int | None = None) -> Image.Image:
    """Open an image file of a known format and size; nothing is decoded yet.

    Args:
        max_pixels: instead of :data:`MAX_PIXELS`.

    Raises:
        ValueError: it is too large or too elongated.
        OSError: it is no image.
    """
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    width, height = image.size
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if width * height > limit:
        raise ValueError(f"{width}x{height} pixels is too large: more than {limit}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f"{width}x{height} pixels is too elongated: one side is more than {MAX_ASPECT} times the other"
        )
    return image


def decode_image(file: Path | IO[bytes], name: str, max_pixels: int | None = None) -> Image.Image:
    """Read an image file as RGB; ``name`` says in errors which one it is. Of more than :data:`KEPT_PIXELS`, it is
    reduced by a whole factor.

    Raises:
        ValueError: when it is not a whole image, or is too large or too elongated.
    """
    try:
        with open_image(file, max_pixels) as image:
            return to_rgb(image)
    except UnidentifiedImageError:
        raise ValueError(f"cannot read image {name}: it is none, or of an unknown format") from None
    except Exception as error:  # Pillow's decoders raise errors of any kind over damaged files
        reason = str(error) or type(error).__name__
        raise ValueError(f"cannot read image {name}: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB; 16-bit and float modes are scaled to 8 bits, alpha is dropped. Of more than
    :data:`KEPT_PIXELS`, it is reduced by the smallest whole factor that leaves no more.
    """
    image.load()
    scale = _scale(image)
    factor = max(1, math.ceil(math.sqrt(image.width * image.height / KEPT_PIXELS)))
    if factor == 1 and scale is None:
        return _rgb(image, None)
    # band by band: neither floats nor RGB of the whole image are ever in memory
    result = Image.new("RGB", (math.ceil(image.width / factor), math.ceil(image.height / factor)))
    rows = max(1, _BAND // image.width // factor) * factor
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(_rgb(band, scale).reduce(factor), (0, top // factor))
    return result


def _scale(image: Image.Image) -> float | None:
    """What brings grey values of mode I (16 bits when above 255) or F (0 to 1, else 0 to 255) to 0 to 255; None for
    other modes.
    """
    if image.mode not in ("I", "F"):
        return None
    extrema: Any = image.getextrema()  # of the one channel: lowest, highest
    if image.mode == "F":
        return 255.0 if extrema[1] <= 1 else 1.0
    return 255 / 65535 if extrema[1] > 255 else 1.0


def _rgb(image: Image.Image, scale: float | None) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif scale is not None:
        values = np.nan_to_num(np.asarray(image).astype(np.float64)) * scale
        image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
