"""The CLIP vision tower, as LLaVA uses it: patch features of one hidden layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.model.multimodal_encoder.tower import SelectingTower


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
        self.vision_tower_name = vision_tower
        self.register_load_state_dict_pre_hook(_accept_old_names)
        if not delay_load:
            self.load_model()
            return
        self.config = _from_folder(CLIPVisionConfig, vision_tower)
        if getattr(args, "unfreeze_mm_vision_tower", False):
            self.image_processor = _from_folder(CLIPImageProcessorPil, vision_tower)
            self.vision_tower = CLIPVisionModel(self.config)
            self._finish_loading()

    def load_model(self, device_map: Any = None) -> None:
        """As the base, with weights in float32."""
        if self.is_loaded:
            return
        name = self.vision_tower_name
        self.image_processor = _from_folder(CLIPImageProcessorPil, name)
        options = {"device_map": device_map} if device_map is not None else {}
        self.vision_tower, info = _from_folder(
            CLIPVisionModel, name, dtype=torch.float32, output_loading_info=True, **options
        )
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"vision tower {name} lacks {len(missing)} of its weights, such as {missing[0]}")
        self._finish_loading()

    def _finish_loading(self) -> None:
        self.vision_tower.requires_grad_(False)
        self.config = self.vision_tower.config
        self.check_layer(self.config.num_hidden_layers)
        self.is_loaded = True

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


def _from_folder(cls: Any, name: str, **options: Any) -> Any:
    try:
        return cls.from_pretrained(name, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"cannot load {cls.__name__} of the vision tower from {name}: {error}"
        ) from error
