"""Images from files, addresses and bytes, as RGB, with errors that name the image."""

from __future__ import annotations

import io
import os
import struct
import urllib.request
import warnings
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 178_956_970  # where Pillow refuses to decode a file; canvases are held to it as well
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def load_image(source: str | Path, folder: str | Path | None = None) -> Image.Image:
    """Read an image as RGB.

    Args:
        source: a path, or an http(s) address.
        folder: when given, ``source`` is a path inside this folder, and nothing outside it is read.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when the path leaves ``folder``, or the file is not a whole image, or is too large.
    """
    source = str(source)
    if folder is None and source.startswith(("http://", "https://")):
        with urllib.request.urlopen(source, timeout=30) as response:  # noqa: S310 - the scheme is checked above
            return decode_image(io.BytesIO(response.read()), source)
    path = Path(source) if folder is None else path_inside(folder, source)
    if not path.is_file():
        raise FileNotFoundError(f"image file not found: {path}")
    return decode_image(path, str(path))


def path_inside(folder: str | Path, name: str) -> Path:
    """The path of a file named relative to a folder, by its name alone: symbolic links in the folder are followed,
    wherever they lead, because whoever owns the folder placed them.

    Raises:
        ValueError: when the name leads out of the folder.
    """
    path = Path(os.path.normpath(Path(folder).absolute() / name))
    if not path.is_relative_to(os.path.normpath(Path(folder).absolute())):
        raise ValueError(
            f"image {name!r} leads out of the image folder {folder}, so it is not read; to allow it, place a symbolic "
            "link in the folder and name that, or choose a folder above"
        )
    return path


def decode_image(file: Path | IO[bytes], name: str) -> Image.Image:
    """Read an image file as RGB; ``name`` says in errors which one it is.

    Raises:
        ValueError: when it is not a whole image, or is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels is too large")
                return to_rgb(image)
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {name} is too large to decode: {error}") from error
    except _UNREADABLE as error:
        raise ValueError(f"cannot read image {name}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB; 16-bit and float modes are scaled to 8 bits, alpha is dropped."""
    image.load()
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits (mode I: when above 255) or floats (0 to 1, else 0 to 255) -> uint8."""
    if values.dtype.kind == "f":
        scale = 255.0 if values.size and values.max() <= 1 else 1.0
    else:
        wide = values.dtype.itemsize == 2 or values.max(initial=0) > 255
        scale = 255 / 65535 if wide else 1.0
    return np.clip(np.rint(np.nan_to_num(values.astype(np.float64)) * scale), 0, 255).astype(np.uint8)
