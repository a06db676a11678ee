"""Tiny-LLaVA's vision tower: a small CLIP vision model that can tell, in each cell, which digit and colour is there.

CLIP learns from captions of web images; here the scenes themselves say what they hold. Each patch has to name the
digit (or none) and the colour (or none) of the cell it lies in, through a linear head that is thrown away. The loss
is on the states that LLaVA reads, those before the last layer (``mm_vision_select_layer -2``), so the last layer
keeps its initial weights, unused. Scenes are drawn anew for every batch, with the training writers only, and more
crowded than those of the data, because only a cell with a digit teaches something.

    python -m dyvte.tiny.tower --out DIR
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dyvte.tiny.scenes import CELL_SIZE, COLOURS, IMAGE_SIZE, Scene, draw, render

logger = logging.getLogger(__name__)

NO_DIGIT, NO_COLOUR = 10, len(COLOURS)
_CLASSES = (11, len(COLOURS) + 1)


def build(hidden: int, layers: int, heads: int, patch: int) -> CLIPVisionModel:
    """A fresh tower for 72-pixel images."""
    config = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=IMAGE_SIZE,
        patch_size=patch,
        projection_dim=hidden,
        hidden_act="gelu",
    )
    return CLIPVisionModel(config)


def processor() -> CLIPImageProcessorPil:
    """CLIP's preprocessing for 72 pixels; a 72 x 72 image is only rescaled and normalised by it."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


def normalise(pixels: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float, as ``processor()`` gives them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def cell_labels(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Digit and colour of every cell, each (N, 9)."""
    digits = torch.full((len(scenes), 9), NO_DIGIT)
    colours = torch.full((len(scenes), 9), NO_COLOUR)
    for number, scene in enumerate(scenes):
        for thing in scene.things:
            digits[number, thing.cell] = thing.digit
            colours[number, thing.cell] = COLOURS.index(thing.colour)
    return digits, colours


class CellReader(nn.Module):
    """Linear heads over the features of one tower layer. P patches.

    Raises:
        ValueError: patches do not divide cells evenly.
    """

    def __init__(self, tower: CLIPVisionModel) -> None:
        super().__init__()
        config = tower.config
        if CELL_SIZE % config.patch_size:
            raise ValueError(f"the patch size must divide {CELL_SIZE}, got {config.patch_size}")
        self.norm = nn.LayerNorm(config.hidden_size)
        self.heads = nn.ModuleList(nn.Linear(config.hidden_size, classes) for classes in _CLASSES)
        rows = torch.arange(IMAGE_SIZE // config.patch_size) * config.patch_size // CELL_SIZE
        self.register_buffer("cell_of_patch", (3 * rows[:, None] + rows).flatten())

    def forward(self, features: Tensor) -> list[Tensor]:
        """Features (N, P, hidden) -> logits of digits (N, P, 11) and of colours (N, P, 6)."""
        features = self.norm(features)
        return [head(features) for head in self.heads]

    def loss(self, features: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy over patches, digits plus colours; labels (N, 9) each."""
        pairs = zip(self(features), labels, strict=True)
        parts = [
            F.cross_entropy(logits.flatten(0, 1), cells[:, self.cell_of_patch].flatten())
            for logits, cells in pairs
        ]
        return parts[0] + parts[1]

    def cells(self, features: Tensor) -> list[Tensor]:
        """Digits and colours read off, each (N, 9): the patches of a cell vote with their log-probabilities."""
        votes = F.one_hot(self.cell_of_patch, 9).float()
        return [
            torch.einsum("npc,pk->nkc", logits.log_softmax(-1), votes).argmax(-1) for logits in self(features)
        ]


def pretrain(tower: CLIPVisionModel, steps: int, batch: int, rate: float, seed: int) -> CellReader:
    """Train all layers but the last, in place; returns the heads."""
    reader = CellReader(tower)
    parameters = [*tower.parameters(), *reader.parameters()]
    decayed = [p for p in parameters if p.ndim > 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": [p for p in parameters if p.ndim < 2]}],
        lr=rate,
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    bar = tqdm(range(steps), desc="tower", unit="step")
    for step in bar:
        scenes = [draw("train", seed, step * batch + number, most=9) for number in range(batch)]
        loss = reader.loss(read_features(tower, normalise(render(scenes))), cell_labels(scenes))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return reader


def read_features(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """What LLaVA reads with select layer -2: patch states before the last layer, (N, P, hidden)."""
    states = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers[:-1]:
        states = layer(states, None)
    return states[:, 1:]


@torch.inference_mode()
def accuracy(tower: CLIPVisionModel, reader: CellReader, split: str, count: int, seed: int) -> dict[str, float]:
    """Share of cells with a thing whose digit and whose colour is read right, and of all cells right in both."""
    right = torch.zeros(3)
    occupied = everything = 0
    for start in range(0, count, 100):
        scenes = [draw(split, seed, index) for index in range(start, min(start + 100, count))]
        digits, colours = cell_labels(scenes)
        read = reader.cells(read_features(tower, normalise(render(scenes))))
        full = digits != NO_DIGIT
        digit_right, colour_right = read[0] == digits, read[1] == colours
        right += torch.stack([(digit_right & full).sum(), (colour_right & full).sum(), (digit_right & colour_right).sum()])
        occupied += int(full.sum())
        everything += full.numel()
    values = (right / torch.tensor([occupied, occupied, everything])).tolist()
    return dict(zip(("digit", "colour", "cell"), values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=96, help="scenes per step")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tower = build(arguments.hidden, arguments.layers, arguments.heads, arguments.patch)
    began = time.perf_counter()
    reader = pretrain(tower, arguments.steps, arguments.batch, arguments.rate, arguments.seed + 1000)
    seconds = time.perf_counter() - began
    tower.save_pretrained(Path(arguments.out))
    processor().save_pretrained(Path(arguments.out))
    print(f"{arguments.steps} steps in {seconds:.0f} s; share read right from the features:")
    for split in ("train", "eval"):
        shares = accuracy(tower, reader, split, 1000, arguments.seed + 2000)
        print(f"  {split} writers: " + ", ".join(f"{name} {share:.2%}" for name, share in shares.items()))


if __name__ == "__main__":
    main()
