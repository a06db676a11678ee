"""Tiny-LLaVA's vision tower: a small CLIP vision model that can tell the digit and color in each cell.

CLIP learns from captions of web images; here the scenes themselves say what they hold. Each patch has to name
the digit (or none) and the color (or none) of the cell it lies in, through a linear head that is thrown
away. The loss is on the states that LLaVA reads, those before the last layer (``mm_vision_select_layer -2``),
so the last layer keeps its initial weights, unused. Scenes are drawn anew for every batch, with the training
writers only, and more crowded than those of the data, because only a cell with a digit teaches something. A
second, shorter run bends the strokes at random: with 1415 training digits, the tower otherwise learns some of
them by heart.

    python -m dyvte.tiny.tower --out DIR

``scripts/tiny/train.sh`` runs it. Sizes and steps are flags.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD  # type: ignore[attr-defined]
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dyvte.cli import run
from dyvte.tiny.muon import MuonAdamW
from dyvte.tiny.scenes import CELL_SIZE, COLORS, IMAGE_SIZE, Scene, draw, render

NO_DIGIT, NO_COLOR = 10, len(COLORS)
_CLASSES = (11, len(COLORS) + 1)


def build(hidden: int, layers: int, heads: int, patch: int) -> CLIPVisionModel:
    """A fresh tower for 72-pixel images."""
    shape: dict[str, Any] = {"num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": patch}
    shape |= {"hidden_size": hidden, "intermediate_size": 4 * hidden, "projection_dim": hidden}
    config = CLIPVisionConfig(**shape, image_size=IMAGE_SIZE, hidden_act="gelu")
    tower = CLIPVisionModel(config)
    _initialize(tower)
    return tower


@torch.no_grad()
def _initialize(tower: CLIPVisionModel) -> None:
    """Weights that learn several times sooner here than CLIP's own initial ones, found by trial.

    Matrices have variance 1 / inputs (less where they write into the residual stream); position embeddings
    are alike within a cell, and alike at the same place of two cells; keys start equal to queries, so that
    patches attend to those of their own cell from the start.
    """
    config: Any = tower.config
    depth = (2 * config.num_hidden_layers) ** 0.5
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear):
            scale = 1 / depth if name.endswith(("out_proj", "fc2")) else 1.0
            nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
    kernel = tower.embeddings.patch_embedding.weight
    nn.init.normal_(kernel, std=kernel[0].numel() ** -0.5)
    positions = tower.embeddings.position_embedding.weight
    cell_of_patch, place_in_cell = patch_places(config.patch_size)
    by_cell = torch.randn(9, config.hidden_size)[cell_of_patch]
    by_place = torch.randn(int(place_in_cell.max()) + 1, config.hidden_size)[place_in_cell]
    positions.normal_(std=0.15)
    positions[1:] += 0.3 * (by_cell + by_place)
    encoder: Any = tower.encoder
    for layer in encoder.layers:
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


def patch_places(patch: int) -> tuple[Tensor, Tensor]:
    """Of each patch, row by row: the cell it lies in (P,), 0..8, and its place within the cell (P,).

    Raises:
        ValueError: patches of this size do not divide cells evenly.
    """
    if CELL_SIZE % patch:
        raise ValueError(f"the patch size must divide {CELL_SIZE}, got {patch}")
    side = CELL_SIZE // patch
    along = torch.arange(3 * side)
    cell = 3 * (along[:, None] // side) + along // side
    place = side * (along[:, None] % side) + along % side
    return cell.flatten(), place.flatten()


def processor() -> CLIPImageProcessorPil:
    """CLIP's preprocessing for 72 pixels; a 72 x 72 image is only rescaled and normalized by it."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


def normalize(pixels: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float, as ``processor()`` gives them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def cell_labels(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Digit and color of every cell, each (N, 9)."""
    digits = torch.full((len(scenes), 9), NO_DIGIT)
    colors = torch.full((len(scenes), 9), NO_COLOR)
    for number, scene in enumerate(scenes):
        for thing in scene.things:
            digits[number, thing.cell] = thing.digit
            colors[number, thing.cell] = COLORS.index(thing.color)
    return digits, colors


class CellReader(nn.Module):
    """Linear heads over the features of one tower layer. P patches."""

    def __init__(self, tower: CLIPVisionModel) -> None:
        super().__init__()
        config: Any = tower.config
        self.cell_of_patch: Tensor
        self.norm = nn.LayerNorm(config.hidden_size)
        self.heads = nn.ModuleList(nn.Linear(config.hidden_size, classes) for classes in _CLASSES)
        self.register_buffer("cell_of_patch", patch_places(config.patch_size)[0])

    def forward(self, features: Tensor) -> list[Tensor]:
        """Features (N, P, hidden) -> logits of digits (N, P, 11) and of colors (N, P, 6)."""
        features = self.norm(features)
        return [head(features) for head in self.heads]

    def loss(self, features: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy over patches, digits plus colors; labels (N, 9) each."""
        digits, colors = (
            F.cross_entropy(logits.flatten(0, 1), cells[:, self.cell_of_patch].flatten())
            for logits, cells in zip(self(features), labels, strict=True)
        )
        return digits + colors

    def cells(self, features: Tensor) -> list[Tensor]:
        """Digits and colors read off, each (N, 9): the patches of a cell vote by log-probability."""
        votes = F.one_hot(self.cell_of_patch, 9).float()
        return [
            torch.einsum("npc,pk->nkc", logits.log_softmax(-1), votes).argmax(-1) for logits in self(features)
        ]


def pretrain(
    tower: CLIPVisionModel, steps: int, batch: int, rate: float, seed: int, distortion: float = 0.0
) -> CellReader:
    """Train all layers but the last, in place, matrices with Muon; returns the heads.

    Args:
        distortion: of the handwriting, in pixels (see ``scenes.render``).
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    reader = CellReader(tower)
    parameters = [*tower.parameters(), *reader.parameters()]
    matrices = [weight for weight in tower.encoder.parameters() if weight.ndim == 2]
    others = [weight for weight in parameters if not any(weight is matrix for matrix in matrices)]
    optimizer = MuonAdamW(
        [
            {"params": matrices, "muon": True, "lr": 2 * rate, "weight_decay": 0.02},
            {"params": others, "lr": rate, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    schedule = LambdaLR(optimizer, lambda step: _share_of_rate(step / steps))
    bar = tqdm(range(steps), desc="tower", unit="step")
    for step in bar:
        scenes = [draw("train", seed, step * batch + number, most=9) for number in range(batch)]
        pixels = normalize(render(scenes, distortion, generator))
        loss = reader.loss(read_features(tower, pixels), cell_labels(scenes))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return reader


def _share_of_rate(progress: float) -> float:
    """The learning rate's schedule: up over 8% of the steps, level, and down to zero over the second half."""
    return min(1.0, progress / 0.08 + 0.01, 2 * (1 - progress))


def read_features(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """What LLaVA reads with select layer -2: patch states before the last layer, (N, P, hidden)."""
    states = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers[:-1]:
        states = layer(states, None)
    return states[:, 1:]


@torch.inference_mode()
def accuracy(
    tower: CLIPVisionModel, reader: CellReader, split: str, count: int, seed: int
) -> dict[str, float]:
    """Share of things whose digit, and whose color, is read right, and of cells right in both."""
    parts = []
    for start in range(0, count, 100):
        scenes = [draw(split, seed, index) for index in range(start, min(start + 100, count))]
        digits, colors = cell_labels(scenes)
        read = reader.cells(read_features(tower, normalize(render(scenes))))
        parts.append(torch.stack([digits != NO_DIGIT, read[0] == digits, read[1] == colors]))
    full, digit, color = torch.cat(parts, dim=1)
    right = {"digit": digit[full], "color": color[full], "cell": digit & color}
    return {name: float(marks.float().mean()) for name, marks in right.items()}


def train(arguments: argparse.Namespace) -> None:
    """Train a tower, write it with its image processor, and print how well its features are read."""
    torch.manual_seed(arguments.seed)
    began = time.perf_counter()
    batch, rate, seed = arguments.batch, arguments.rate, arguments.seed + 1000
    if arguments.start:
        tower, reader = CLIPVisionModel.from_pretrained(arguments.start), None
    else:
        tower = build(arguments.hidden, arguments.layers, arguments.heads, arguments.patch)
        reader = pretrain(tower, arguments.steps, batch, rate, seed)
    if reader is None or arguments.distorted_steps:
        reader = pretrain(tower, arguments.distorted_steps, batch, rate / 2, seed + 1, arguments.distortion)
    seconds = time.perf_counter() - began
    for part in (tower, processor()):
        part.save_pretrained(Path(arguments.out))
    print(f"{seconds:.0f} s; share read right from the features:")
    for split in ("train", "eval"):
        shares = accuracy(tower, reader, split, 1000, arguments.seed + 2000)
        print(f"  {split} writers: " + ", ".join(f"{name} {share:.2%}" for name, share in shares.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=1200, help="of the first run")
    bent = "of the second run, with bent strokes"
    parser.add_argument("--distorted-steps", type=int, default=400, help=bent)
    parser.add_argument("--distortion", type=float, default=1.5, help="pixels by which strokes are bent")
    parser.add_argument("--start", help="tower to start the second run from, instead of a first run")
    parser.add_argument("--batch", type=int, default=48, help="scenes per step")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    for name, default in {"hidden": 96, "layers": 4, "heads": 4, "patch": 8, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    run(parser, train)


if __name__ == "__main__":
    main()
