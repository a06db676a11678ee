"""From files and text to what the model takes: images to pixels, prompts to token ids.

Called from most of the project.
"""

from __future__ import annotations

import ast
import base64
import io
import logging
import math
import re

import torch
from PIL import Image
from transformers import StoppingCriteria

from dyvte.engine.images import KEPT_PIXELS, open_image, to_rgb
from dyvte.engine.model import model_name_of as get_model_name_from_path  # noqa: F401 - LLaVA's name of it
from llava.constants import IMAGE_TOKEN_INDEX

logger = logging.getLogger(__name__)


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """Decode a base64 text into an image, in the mode it was stored in."""
    return open_image(io.BytesIO(base64.b64decode(image)))


def expand2square(pil_img: Image.Image, background_color: tuple[int, ...]) -> Image.Image:
    """Centre the image on a square canvas as wide as its longer side; square images come back unchanged.

    An image so elongated that the canvas would not fit in memory is made smaller first.
    """
    width, height = pil_img.size
    if width == height:
        return pil_img
    if len(background_color) == 3 and pil_img.mode != "RGB":
        pil_img = to_rgb(pil_img)
    side = max(width, height)
    if side * side > KEPT_PIXELS:
        scale = math.isqrt(KEPT_PIXELS) / side
        logger.warning("an image of %dx%d pixels is made smaller before it is padded", width, height)
        width, height = max(1, int(width * scale)), max(1, int(height * scale))
        pil_img = pil_img.resize((width, height))
        side = max(width, height)
    canvas = Image.new(pil_img.mode, (side, side), background_color)
    canvas.paste(pil_img, ((side - width) // 2, (side - height) // 2))
    return canvas


def select_best_resolution(
    original_size: tuple[int, int], possible_resolutions: list[tuple[int, int]]
) -> tuple[int, int]:
    """The (width, height) that keeps most of the image's pixels, and among equals wastes the least area."""
    width, height = original_size

    def merit(resolution: tuple[int, int]) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    return max(possible_resolutions, key=merit)


def resize_and_pad_image(image: Image.Image, target_resolution: tuple[int, int]) -> Image.Image:
    """Fit the image into (width, height), keeping its ratio, centred on black."""
    target_width, target_height = target_resolution
    scale_width, scale_height = target_width / image.width, target_height / image.height
    if scale_width < scale_height:
        size = target_width, min(math.ceil(image.height * scale_width), target_height)
    else:
        size = min(math.ceil(image.width * scale_height), target_width), target_height
    canvas = Image.new("RGB", target_resolution, (0, 0, 0))
    canvas.paste(image.resize(size), ((target_width - size[0]) // 2, (target_height - size[1]) // 2))
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Square tiles of the image, row by row."""
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, image.height, patch_size)
        for left in range(0, image.width, patch_size)
    ]


def is_aspect_ratio(value: object) -> bool:
    """Whether a config's ``image_aspect_ratio`` is one that there is."""
    return value in ("square", "pad", "anyres") or most_tiles(value) is not None


def most_tiles(aspect: object) -> int | None:
    """N of ``anyres_max_N``; None for other ``image_aspect_ratio``."""
    named = re.fullmatch(r"anyres_max_([1-9]\d{0,3})", aspect) if isinstance(aspect, str) else None
    return int(named[1]) if named else None


def _pinpoints(grid_pinpoints, tile: int) -> list[tuple[int, int]]:
    """Resolutions (width, height) as a list; configs hold a list, its text, or a range of numbers of tiles, from
    ``(1x1),...,(6x6)``.

    Raises:
        ValueError: it is none of these.
    """
    corners = (
        re.findall(r"\((\d{1,2})x(\d{1,2})\)", grid_pinpoints) if isinstance(grid_pinpoints, str) else ()
    )
    if corners:
        (left, top), (right, bottom) = (map(int, corner) for corner in (corners[0], corners[-1]))
        columns, rows = range(left, right + 1), range(top, bottom + 1)
        return [(across * tile, down * tile) for across in columns for down in rows]
    try:
        points = ast.literal_eval(grid_pinpoints) if isinstance(grid_pinpoints, str) else grid_pinpoints
        found = [(int(width), int(height)) for width, height in points]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        found = []
    if not found or min(min(point) for point in found) < 1:
        raise ValueError(
            f"image_grid_pinpoints must be a list of [width, height], or (1x1),...,(6x6), it is {grid_pinpoints!r}"
        )
    return found


def get_anyres_image_grid_shape(
    image_size: tuple[int, int], grid_pinpoints, patch_size: int
) -> tuple[int, int]:
    """How many tiles (across, down) an image of (width, height) is cut into."""
    width, height = select_best_resolution(image_size, _pinpoints(grid_pinpoints, patch_size))
    return width // patch_size, height // patch_size


def process_anyres_image(image: Image.Image, processor, grid_pinpoints) -> torch.Tensor:
    """Pixels (1 + tiles, 3, crop, crop): the whole image squeezed to a square, then its tiles."""
    image = to_rgb(image)
    tile = processor.crop_size["height"]
    resolution = select_best_resolution(image.size, _pinpoints(grid_pinpoints, tile))
    tiles = divide_to_patches(resize_and_pad_image(image, resolution), tile)
    side = processor.size["shortest_edge"]
    return torch.stack([_pixels(tile, processor) for tile in (image.resize((side, side)), *tiles)])


def _pixels(image: Image.Image, processor) -> torch.Tensor:
    """(3, H, W) from the processor."""
    side = processor.size["shortest_edge"]
    if side * side * max(image.size) // min(image.size) > KEPT_PIXELS:
        raise ValueError(
            f"an image of {image.width}x{image.height} pixels is too elongated to be cropped: pad it"
        )
    return processor.preprocess(image, return_tensors="pt")["pixel_values"][0]


def process_images(
    images: list[Image.Image], image_processor, model_cfg
) -> torch.Tensor | list[torch.Tensor]:
    """Pixels of the images, as ``model_cfg.image_aspect_ratio`` says: "pad", "anyres", "anyres_max_N" (the same
    tiles, whose features are made fewer), or plain ("square", None).

    Returns:
        (I, 3, H, W), or (I, 1 + tiles, 3, H, W) for anyres; a list when the tiles differ.

    Raises:
        ValueError: there is no such ``image_aspect_ratio``.
    """
    aspect = getattr(model_cfg, "image_aspect_ratio", None)
    if aspect is not None and not is_aspect_ratio(aspect):
        raise ValueError(f"image_aspect_ratio must be square, pad, anyres or anyres_max_N, it is {aspect!r}")
    if aspect == "pad":
        colour = tuple(int(255 * mean) for mean in image_processor.image_mean)
        pixels = [_pixels(expand2square(to_rgb(image), colour), image_processor) for image in images]
    elif aspect not in (None, "square"):
        pixels = [
            process_anyres_image(image, image_processor, model_cfg.image_grid_pinpoints) for image in images
        ]
    else:
        pixels = [_pixels(to_rgb(image), image_processor) for image in images]
    same = all(pixel.shape == pixels[0].shape for pixel in pixels)
    return torch.stack(pixels) if pixels and same else pixels


def tokenizer_image_token(
    prompt: str, tokenizer, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | torch.Tensor:
    """Token ids of a prompt, with ``image_token_index`` at each ``<image>``.

    The pieces between images are tokenised on their own, as in training; the beginning-of-text token stays
    only in front. ``return_tensors="pt"`` gives a 1-D long tensor instead of a list.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"unsupported return_tensors {return_tensors!r}: use 'pt' or None")
    pieces = [tokenizer(piece).input_ids for piece in prompt.split("<image>")]
    starts = bool(pieces[0]) and pieces[0][0] == tokenizer.bos_token_id
    ids = pieces[0][:1] if starts else []
    for index, piece in enumerate(pieces):
        if index:
            ids.append(image_token_index)
        ids += piece[int(starts) :]
    return torch.tensor(ids, dtype=torch.long) if return_tensors == "pt" else ids


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops a row once it ends with a keyword, by its token ids or in the text of the newest tokens."""

    def __init__(self, keywords: list[str], tokenizer, input_ids: torch.Tensor) -> None:
        self.keywords = keywords
        self.tokenizer = tokenizer
        self.start_len = input_ids.shape[1]
        encoded = [tokenizer(keyword).input_ids for keyword in keywords]
        self.keyword_ids = [
            ids[1:] if len(ids) > 1 and ids[0] == tokenizer.bos_token_id else ids for ids in encoded
        ]
        self.max_keyword_len = max(map(len, self.keyword_ids), default=0)

    def __call__(self, output_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        """(rows,) bool: which rows met a keyword. ``output_ids`` may hold the prompt or only new tokens."""
        return torch.tensor([self._row_stops(row) for row in output_ids], device=output_ids.device)

    def _row_stops(self, row: torch.Tensor) -> bool:
        ids = row.tolist()
        if any(ids[-len(keyword) :] == keyword for keyword in self.keyword_ids if keyword):
            return True
        generated = len(ids) - self.start_len if len(ids) > self.start_len else len(ids)
        window = ids[len(ids) - min(generated, self.max_keyword_len) :]
        text = self.tokenizer.decode([token for token in window if token >= 0], skip_special_tokens=True)
        return any(keyword in text for keyword in self.keywords)
