"""Scenes: three to seven colored handwritten digits on a 3 x 3 grid, 72 x 72 pixels.

A scene is drawn from (split, seed, index) alone, looks included, so any scene can be made again by itself. N
scenes, K digits in all of them.

Called throughout :mod:`dyvte.tiny`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dyvte.tiny import digits

CELL_SIZE = digits.GLYPH_SIZE
IMAGE_SIZE = 3 * CELL_SIZE
POSITIONS = (
    "top left", "top center", "top right",
    "middle left", "center", "middle right",
    "bottom left", "bottom center", "bottom right",
)  # fmt: skip
COLORS = ("red", "green", "blue", "yellow", "white")
_INK = torch.tensor([[225, 50, 45], [40, 195, 70], [65, 110, 245], [240, 215, 40], [240, 240, 240]]) / 255
_FEWEST, _MOST = 3, 7

_LOOKS_PER_THING = 9
_LOOKS_PER_SCENE = 7


@dataclass(frozen=True)
class Thing:
    """A digit in its cell. ``cell`` counts row by row from the top left; ``sample`` is the handwriting."""

    cell: int
    digit: int
    color: str
    sample: int

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3

    @property
    def position(self) -> str:
        return POSITIONS[self.cell]

    @property
    def name(self) -> str:
        """Such as "red 3"."""
        return f"{self.color} {self.digit}"


@dataclass(frozen=True)
class Scene:
    """What is where, in reading order. ``looks`` (uniform) and ``key`` decide pose, light and noise."""

    things: tuple[Thing, ...]
    split: str
    key: tuple[int, ...]
    looks: tuple[float, ...]

    def caption(self) -> str:
        """Everything in reading order, such as "top left red 3, center blue 7"."""
        return ", ".join(f"{thing.position} {thing.name}" for thing in self.things)


def draw(split: str, seed: int, index: int, most: int = _MOST) -> Scene:
    """The scene of this split, seed and index, with three to ``most`` things."""
    key = (digits.SPLITS.index(split), seed, index)
    rng = np.random.default_rng(key)
    samples_of = digits.load(split).samples_of
    count = int(rng.integers(_FEWEST, most + 1))
    things = []
    for cell in sorted(rng.permutation(9)[:count].tolist()):
        digit, color = int(rng.integers(10)), COLORS[rng.integers(len(COLORS))]
        things.append(Thing(cell, digit, color, int(rng.integers(len(samples_of[digit])))))
    looks = rng.random(_LOOKS_PER_SCENE + _LOOKS_PER_THING * count)
    return Scene(tuple(things), split, key, tuple(looks.tolist()))


def render(
    scenes: Sequence[Scene], distortion: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Scenes of one split -> pixels (N, 72, 72, 3), uint8.

    Args:
        distortion: bends strokes, by about so many pixels, to make new handwriting for training.
        generator: what the distortion is drawn from.

    Raises:
        ValueError: scenes of both splits at once.
    """
    if len({scene.split for scene in scenes}) != 1:
        raise ValueError("render takes one or more scenes, all of the same split")
    glyphs = digits.load(scenes[0].split)
    things = [thing for scene in scenes for thing in scene.things]
    looks = torch.tensor([look for scene in scenes for look in scene.looks[_LOOKS_PER_SCENE:]])
    bends = _bends(len(things), distortion, generator) if distortion else None
    ink, alpha = _draw_things(glyphs, things, looks.view(len(things), _LOOKS_PER_THING), bends)
    cells = _backgrounds(scenes).view(len(scenes), 3, 3, CELL_SIZE, 3, CELL_SIZE)  # N, rgb, row, y, column, x
    owner = torch.tensor([number for number, scene in enumerate(scenes) for _ in scene.things])
    rows, columns = torch.tensor([[thing.row, thing.column] for thing in things]).T
    under = cells[owner, :, rows, :, columns]
    cells[owner, :, rows, :, columns] = torch.lerp(under, ink[:, :, None, None], alpha[:, None])
    pixels = cells.reshape(len(scenes), 3, IMAGE_SIZE, IMAGE_SIZE)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def encode(scenes: Sequence[Scene], image_format: str = "JPEG") -> list[bytes]:
    """Scenes of one split as image files of this format; JPEG without chroma subsampling."""
    files = []
    for pixels in render(scenes).numpy() if scenes else ():
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, image_format, quality=95, subsampling=0)
        files.append(buffer.getvalue())
    return files


def save_images(scenes: Mapping[Path, Scene], image_format: str = "JPEG") -> None:
    """Write scenes of one split, by the files they become, in this format whatever the suffix."""
    for path, content in zip(scenes, encode([*scenes.values()], image_format), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _draw_things(
    glyphs: digits.Digits, things: Sequence[Thing], looks: Tensor, bends: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Ink colors (K, 3) and coverage (K, 24, 24) of posed digits; ``looks`` (K, 9) uniform in [0, 1]."""
    signed = 2 * looks - 1
    angle, shear = signed[:, 0] * 0.26, signed[:, 1] * 0.25
    wide, high = 1 + 0.15 * signed[:, 2], 1 + 0.15 * signed[:, 3]
    shift_x, shift_y = 0.14 * signed[:, 4], 0.14 * signed[:, 5]
    cos, sin = angle.cos(), angle.sin()
    # From a pixel of the cell to the place in the glyph that it shows, in affine_grid's coordinates.
    theta = torch.stack(
        [
            torch.stack([cos * wide, (shear - sin) * wide, shift_x], -1),
            torch.stack([sin * high, cos * high, shift_y], -1),
        ],
        dim=1,
    )
    chosen = torch.tensor([glyphs.samples_of[thing.digit][thing.sample] for thing in things])
    grid = F.affine_grid(theta, [len(things), 1, CELL_SIZE, CELL_SIZE], align_corners=False)
    grid = grid if bends is None else grid + bends
    coverage = F.grid_sample(glyphs.glyphs[chosen][:, None], grid, align_corners=False)[:, 0]
    weight = 0.9 + 0.7 * looks[:, 6]  # a light or a heavy hand
    ink = _INK[torch.tensor([COLORS.index(thing.color) for thing in things])]
    ink = ink * (0.8 + 0.2 * looks[:, 7:8]) + 0.08 * signed[:, 8:9]
    return ink.clamp(0, 1), (coverage * weight[:, None, None]).clamp(0, 1)


def _bends(count: int, pixels: float, generator: torch.Generator | None) -> Tensor:
    """Smooth random displacements (K, 24, 24, 2) of about so many pixels, in affine_grid's coordinates."""
    knots = torch.randn(count, 2, 4, 4, generator=generator) * (2 * pixels / CELL_SIZE)
    return F.interpolate(knots, size=CELL_SIZE, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def _backgrounds(scenes: Sequence[Scene]) -> Tensor:
    """Dark grounds (N, 3, 72, 72) in [0, 1]: a tint, a slope of light, and noise."""
    looks = torch.tensor([scene.looks[:_LOOKS_PER_SCENE] for scene in scenes])
    tint = 0.02 + 0.2 * looks[:, :3]
    slope = 0.08 * (2 * looks[:, 3:5] - 1)
    noise = 0.01 + 0.03 * looks[:, 5]
    shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    grain = np.stack(
        [np.random.default_rng((*scene.key, 1)).integers(0, 256, shape, dtype=np.uint8) for scene in scenes]
    )
    ramp = torch.linspace(-1, 1, IMAGE_SIZE)
    light = slope[:, 0, None, None] * ramp[:, None] + slope[:, 1, None, None] * ramp
    grain = torch.from_numpy(grain).float() / 127.5 - 1
    return tint[:, :, None, None] + light[:, None] + noise[:, None, None, None] * grain
