"""What all vision towers are: pixels in, one feature per patch out, with the image processor that belongs to them.

Called throughout :mod:`llava.model`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class VisionTower(nn.Module, abc.ABC):
    """Base of the towers.

    Attributes:
        image_processor: turns PIL images into pixels; absent until loaded.
        is_loaded: whether weights and image processor are there.
        config: sizes; at least ``image_size`` and ``patch_size``.
        inside: whether the LLaVA checkpoint that is loaded brings the weights.
    """

    image_processor: Any
    is_loaded: bool = False
    config: Any
    inside: bool = False

    @property
    @abc.abstractmethod
    def hidden_size(self) -> int:
        """Size of one feature."""

    @property
    @abc.abstractmethod
    def num_patches_per_side(self) -> int:
        """Features along one side of an image."""

    def load_model(self, device_map: Any = None) -> None:
        """Read weights (in the dtype they are stored in) and image processor; does nothing when they are there.

        Raises:
            FileNotFoundError: when the files cannot be read.
            ValueError: when the files lack weights of the tower.
        """
        if not self.is_loaded:
            self._load(device_map)
            self.requires_grad_(False)
            self.is_loaded = True

    @abc.abstractmethod
    def _load(self, device_map: Any) -> None:
        """What :meth:`load_model` does where nothing is there."""

    @abc.abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) -> features (N, num_patches, hidden_size), both in the tower's dtype."""

    @torch.no_grad()
    def forward(self, images: Tensor | list[Tensor]) -> Any:
        """Pixels (N, 3, H, W) -> features (N, num_patches, hidden_size) in the pixels' dtype.

        A list of (3, H, W) pixels gives a list of (1, num_patches, hidden_size). One more feature, the class
        token's, comes first with "cls_patch".
        """
        if isinstance(images, list):
            return [self.forward(image[None]) for image in images]
        return self.encode(images.to(self.device, self.dtype)).to(images.dtype)

    @property
    def dummy_feature(self) -> Tensor:
        """A zero feature, (1, hidden_size), as LLaVA's towers have it."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return next(weight.dtype for weight in self.parameters() if weight.is_floating_point())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def num_patches(self) -> int:
        return self.num_patches_per_side**2


class MapEncoder(nn.Module):
    """One of several towers side by side: pixels (N, 3, H, W) -> a map of features (N, channels, rows, columns).

    Args:
        fields: its sizes; absent ones are those of the released tower.

    Attributes:
        image_size: the pixels' height and width; None where any will do.
        channels: size of one feature.
    """

    image_size: int | None = None
    channels: int
    vision_tower: Any

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vision_tower(pixels)


def known_fields(fields: Mapping[str, Any], released: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that ``released`` has, with its values for those that are absent."""
    return {key: fields.get(key, value) for key, value in released.items()}


class SelectingTower(VisionTower):
    """A tower whose features are one hidden layer's states, as ``mm_vision_select_*`` in ``args`` say.

    Raises:
        ValueError: unknown ``mm_vision_select_feature``.
    """

    def __init__(self, args: Any) -> None:
        super().__init__()
        self.select_layer = args.mm_vision_select_layer
        self.select_feature = getattr(args, "mm_vision_select_feature", "patch")
        if self.select_feature not in ("patch", "cls_patch"):
            raise ValueError(
                f"unknown mm_vision_select_feature {self.select_feature!r}: use patch or cls_patch"
            )

    def check_layer(self, layers: int) -> None:
        """Raise ValueError when a tower of so many layers does not have the layer to select."""
        if not -layers - 1 <= self.select_layer <= layers:
            raise ValueError(
                f"mm_vision_select_layer {self.select_layer} does not exist: the tower has {layers} layers"
            )

    def select(self, features: Tensor) -> Tensor:
        """(N, 1 + patches, hidden), without the class token for "patch"."""
        return features[:, 1:] if self.select_feature == "patch" else features

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def num_patches_per_side(self) -> int:
        return self.config.image_size // self.config.patch_size
