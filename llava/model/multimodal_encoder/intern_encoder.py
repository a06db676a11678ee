"""InternVL-Chat's tower: InternViT at 336 pixels, in a folder of its own or inside the LLaVA checkpoint.

Called by :mod:`llava.model.multimodal_encoder.builder`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dyvte.cost.flops import vision_flops
from llava.model.checkpoint import has_weights, load_weights, read_config, tensor_shapes
from llava.model.multimodal_encoder.intern_vit import InternViT, InternViTConfig
from llava.model.multimodal_encoder.tower import SelectingTower

INSIDE = "model.vision_tower.vision_tower."
"""Prefix of the tower's weights inside a checkpoint."""
POSITIONS = "embeddings.position_embedding"


class InternVisionTower(SelectingTower):
    """InternViT with its image processor.

    Attributes:
        vision_tower: the :class:`InternViT`; absent until loaded.
        config: its sizes, with the ``image_size`` that images are brought to.
        inside: whether the checkpoint brings the weights. A folder (or Hub id) of the tower comes first, as in the
            original loader; the published checkpoint holds the tower too, its position table resized to 336 pixels.
    """

    def __init__(self, name: str, args: Any, folder: str | None, checkpoint: str | None) -> None:
        """Read the tower's sizes; the weights come with ``load_model``, or with the checkpoint's.

        Args:
            name: ``mm_vision_tower``.
            args: model config; its ``vision_config`` has the sizes of a tower that is inside.
            folder: the tower's folder or Hub id, if there is one.
            checkpoint: the checkpoint's, which may hold the tower.

        Raises:
            FileNotFoundError: the tower is in neither place.
        """
        super().__init__(args)
        self.folder = folder
        shapes = {}
        if folder is None or (Path(folder).is_dir() and not has_weights(folder)):
            shapes = tensor_shapes(checkpoint, INSIDE, POSITIONS) if checkpoint else {}
            if not shapes:
                raise FileNotFoundError(
                    f"vision tower {name!r} not found: there is no such folder, and the checkpoint does not hold it"
                )
        self.inside = bool(shapes)
        described = getattr(args, "vision_config", None) or (read_config(folder) if folder else {})
        config = InternViTConfig.from_dict(described)
        if self.inside:
            config = _fitting(config, shapes, "num_hidden_layers" in described)
        self.check_layer(config.num_hidden_layers)
        self.config = replace(config, image_size=448 if "448" in Path(name).name else 336)
        self._table = config.image_size
        if self.inside:
            self.vision_tower = InternViT(config)

    def _load(self, device_map: Any) -> None:
        if not self.inside:
            with torch.device("meta"):
                self.vision_tower = InternViT(replace(self.config, image_size=self._table))
            self._read()
        side = self.config.image_size
        self.image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=list(IMAGENET_DEFAULT_MEAN),
            image_std=list(IMAGENET_DEFAULT_STD),
        )

    def _read(self) -> None:
        assert self.folder is not None
        weights = load_weights(self.folder)
        own = self.vision_tower.state_dict()
        if missing := sorted(own.keys() - weights.keys()):
            raise ValueError(
                f"vision tower {self.folder} lacks {len(missing)} of its weights, such as {missing[0]}"
            )
        for key, value in own.items():
            if weights[key].shape != value.shape:
                raise ValueError(
                    f"vision tower {self.folder}: {key} has shape {tuple(weights[key].shape)}, "
                    f"its config.json asks for {tuple(value.shape)}"
                )
        self.vision_tower.load_state_dict({key: weights[key] for key in own}, assign=True)

    def encode(self, images: Tensor) -> Tensor:
        return self.select(self.vision_tower(images, self._layers))

    @property
    def _layers(self) -> int:
        """Blocks that run: those below the selected layer, of which layer 0 is the embeddings."""
        total = self.config.num_hidden_layers
        return self.select_layer if self.select_layer >= 0 else total + 1 + self.select_layer

    def flops_per_image(self) -> int:
        """FLOPs of the blocks that run, and the patch embedding."""
        return vision_flops(replace(self.config, num_hidden_layers=self._layers))


def _fitting(config: InternViTConfig, shapes: dict[str, tuple[int, ...] | None], has_layers: bool):
    """The config with what the checkpoint's weights say: the position table's grid and, if not given, the depth."""
    rows = shapes[POSITIONS]
    assert rows is not None
    config = replace(config, image_size=math.isqrt(rows[1] - 1) * config.patch_size)
    if has_layers:
        return config
    layers = {int(key.split(".")[2]) for key in shapes if key.startswith("encoder.layers.")}
    return replace(config, num_hidden_layers=max(layers, default=-1) + 1)
