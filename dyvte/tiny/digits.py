"""Handwritten digits: the UCI set that scikit-learn bundles, split by writer.

The file has no writer ids, but its order shows them: the labels start over (0..9, three times, and then a fixed mixed
sequence) every 124 to 131 samples, as when one person after another fills in the same form. The split is at one of
these restarts, so that nobody who wrote an evaluation digit wrote a training digit, as far as the file can tell.

Called by :mod:`dyvte.tiny.scenes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dyvte.cli import needs

FIRST_EVALUATION_SAMPLE = 1415
"""Where the twelfth form begins: 1415 training digits before it, 382 evaluation digits from it on."""

SPLITS = ("train", "eval")
GLYPH_SIZE = 24
"""Pixels along a glyph's side; the digit fills the inner 18."""

_DIGIT_SIZE = 18


@dataclass(frozen=True)
class Digits:
    """The digits of one split. M digits.

    Attributes:
        glyphs: (M, 24, 24) float32 in [0, 1]: how much ink, 0 around the border.
        samples_of: indices into ``glyphs`` by digit 0..9.
    """

    glyphs: Tensor
    samples_of: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=2)
def load(split: str) -> Digits:
    """The digits of the training or the evaluation writers.

    Raises:
        ValueError: ``split`` is neither "train" nor "eval".
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}: use one of {', '.join(SPLITS)}")
    data: Any = needs("sklearn.datasets", "tiny").load_digits()
    part = slice(None, FIRST_EVALUATION_SAMPLE) if split == "train" else slice(FIRST_EVALUATION_SAMPLE, None)
    images = torch.tensor(data.images[part], dtype=torch.float32)[:, None] / 16
    large = F.interpolate(images, size=_DIGIT_SIZE, mode="bicubic", align_corners=False)
    border = (GLYPH_SIZE - _DIGIT_SIZE) // 2
    glyphs = F.pad(large.clamp(0, 1)[:, 0], (border,) * 4)
    labels = data.target[part].tolist()
    samples_of = tuple(tuple(i for i, label in enumerate(labels) if label == digit) for digit in range(10))
    return Digits(glyphs, samples_of)
