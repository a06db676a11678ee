"""Eagle's vision tower: several encoders on one image, their features side by side as channels.

The order of the channels, and how maps are resized, are those of Eagle's own code: released projectors rely on them.

Called by :mod:`llava.model.multimodal_encoder.builder`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dyvte.cost.vision import counted_flops
from llava.model.multimodal_encoder.eagle_convnext import ConvNextEncoder
from llava.model.multimodal_encoder.eagle_eva import EvaEncoder
from llava.model.multimodal_encoder.eagle_transformers import ClipEncoder, Pix2StructEncoder, SamEncoder
from llava.model.multimodal_encoder.tower import MapEncoder, VisionTower

ENCODERS: dict[str, type[MapEncoder]] = {
    "clip": ClipEncoder,
    "convnext": ConvNextEncoder,
    "sam": SamEncoder,
    "det": EvaEncoder,
    "pix2struct": Pix2StructEncoder,
}
SIDE = 32  # of the map that every encoder's is brought to


class MixtureTower(VisionTower):
    """The encoders that ``mm_vision_tower`` names (``clip-448;convnext-1024;...``), in this order.

    All weights are in the checkpoint. Sizes are those of Eagle-X5 where the config's ``encoders`` has no entry for a
    name. ``mm_vision_select_*`` have no effect, as in the original.

    Attributes:
        vision_towers: the encoders, each with its weights as ``vision_tower``: the published names.
    """

    inside = True

    def __init__(self, name: str, args: Any) -> None:
        """Build the encoders without weights.

        Args:
            name: ``mm_vision_tower``.
            args: model config, with ``encoders``, ``input_image_size`` (1024) and ``mm_hidden_size`` if any.

        Raises:
            ValueError: there is no such encoder, or the channels are not ``mm_hidden_size``.
        """
        super().__init__()
        sizes = getattr(args, "encoders", None) or {}
        self.vision_towers = nn.ModuleList()
        for part in name.split(";"):
            kind = part.partition("-")[0]
            if kind not in ENCODERS:
                raise ValueError(
                    f"unknown vision tower {part!r} in {name!r}: there are {', '.join(ENCODERS)}"
                )
            self.vision_towers.append(ENCODERS[kind](sizes.get(part, {})))
        wanted = getattr(args, "mm_hidden_size", None) or self.hidden_size
        if wanted != self.hidden_size:
            raise ValueError(
                f"mm_hidden_size is {wanted}, but the towers of {name!r} have {self.hidden_size} channels"
            )
        side = getattr(args, "input_image_size", None) or 1024
        self.config = SimpleNamespace(image_size=side, patch_size=side // SIDE, hidden_size=self.hidden_size)
        self.requires_grad_(False)

    def _load(self, device_map: Any) -> None:
        side = self.config.image_size
        self.image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    def encode(self, images: Tensor) -> Tensor:
        maps = []
        for encoder in self._encoders:
            features = encoder(_resized(images, encoder.image_size))
            maps.append(_resized(features, SIDE))
        return torch.cat(maps, 1).flatten(2).transpose(1, 2)

    @property
    def _encoders(self) -> list[MapEncoder]:
        return cast("list[MapEncoder]", list(self.vision_towers))

    @property
    def num_patches_per_side(self) -> int:
        return SIDE

    @property
    def hidden_size(self) -> int:
        return sum(encoder.channels for encoder in self._encoders)

    def flops_per_image(self) -> int:
        """FLOPs of the encoders, as PyTorch counts them."""
        if not hasattr(self, "_flops"):
            side = self.config.image_size
            self._flops = counted_flops(self, (1, 3, side, side))
        return self._flops


def _resized(maps: Tensor, side: int | None) -> Tensor:
    """(N, C, H, W) -> (N, C, side, side), corners on corners; as it is where it has this size, or for None."""
    if side is None or maps.shape[2:] == (side, side):
        return maps
    return F.interpolate(maps.float(), size=(side, side), mode="bilinear", align_corners=True).to(maps.dtype)
