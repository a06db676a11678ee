"""The CLIP vision tower, as LLaVA uses it: patch features of one hidden layer.

Called by :mod:`llava.model.multimodal_encoder.builder`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dyvte.fields import FLAG, check_fields, either, listed, number, optional, record, whole
from dyvte.io import read_json_object
from dyvte.weights import load_pretrained, reading
from llava.model.checkpoint import needed_file, read_config
from llava.model.multimodal_encoder.tower import SelectingTower

_SIDE = whole(1, 10_000)
_COLOUR = optional(listed(number(-1000, 1000), 3))
PROCESSOR_FIELDS = {
    "size": either(record(shortest_edge=_SIDE), _SIDE),
    "crop_size": either(record(height=_SIDE, width=_SIDE), _SIDE),
    "image_mean": _COLOUR,
    "image_std": optional(listed(number(1e-6, 1000), 3)),
    "rescale_factor": optional(number(0, 1000)),
    "resample": optional(whole(0, 5)),
    **dict.fromkeys(
        ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), optional(FLAG)
    ),
}
"""What the fields of a CLIP tower's ``preprocessor_config.json`` must be."""


class CLIPVisionTower(SelectingTower):
    """CLIP's vision model with the image processor that belongs to it.

    Attributes:
        vision_tower: the ``CLIPVisionModel``; absent until loaded.
        recordable: whether encoding launches kernels and nothing else; see ``Adapter.encoder``.
    """

    recordable = True

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        """Load the tower, or only its config with ``delay_load``.

        With ``delay_load`` and ``args.unfreeze_mm_vision_tower`` the model is built without weights, because
        the LLaVA checkpoint that is being loaded brings them.
        """
        super().__init__(args)
        self.vision_tower_name, self.config = vision_tower, _read_config(vision_tower)
        self.register_load_state_dict_pre_hook(_accept_old_names)
        self._brought = delay_load and getattr(args, "unfreeze_mm_vision_tower", False)
        if self._brought or not delay_load:
            self.load_model()

    def _load(self, device_map: Any) -> None:
        """Weights in float32."""
        name = self.vision_tower_name
        self.image_processor = _read_processor(name, self.config)
        if self._brought:
            self.vision_tower = CLIPVisionModel(self.config)
        else:
            options = {"device_map": device_map} if device_map is not None else {}
            self.vision_tower, _ = load_pretrained(CLIPVisionModel, name, dtype=torch.float32, **options)
        self.config = self.vision_tower.config
        self.check_layer(self.config.num_hidden_layers)

    def encode(self, images: Tensor) -> Tensor:
        states = self.vision_tower(images, output_hidden_states=True).hidden_states
        return self.select(states[self.select_layer])


def _accept_old_names(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Rename, in place, keys written before CLIP's vision model lost its inner ``vision_model`` level."""
    old = f"{prefix}vision_tower.vision_model."
    for key in [key for key in state_dict if key.startswith(old)]:
        value = state_dict.pop(key)
        if not key.endswith("position_ids"):
            state_dict[f"{prefix}vision_tower.{key[len(old) :]}"] = value


def _read_config(name: str) -> CLIPVisionConfig:
    read_config(name)  # sizes that nobody has reached are told before a model of them is built
    with reading(f"{name}/config.json"):
        return CLIPVisionConfig.from_pretrained(name)


def _read_processor(name: str, config: CLIPVisionConfig) -> CLIPImageProcessorPil:
    file = needed_file(name, "preprocessor_config.json", "it says how the vision tower gets its images")
    check_fields(read_json_object(file), PROCESSOR_FIELDS, file)
    with reading(file):
        processor = CLIPImageProcessorPil.from_pretrained(name)
        side, crop = config.image_size, (processor.crop_size["height"], processor.crop_size["width"])
    if processor.do_center_crop and crop != (side, side):
        raise ValueError(
            f"{file}: crop_size is {crop[0]}x{crop[1]}, but config.json says that the vision tower takes images of "
            f"{side}x{side} (image_size)"
        )
    return processor
