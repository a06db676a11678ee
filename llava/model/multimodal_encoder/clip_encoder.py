"""The CLIP vision tower, as LLaVA uses it: patch features of one hidden layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


class CLIPVisionTower(nn.Module):
    """CLIP's vision model with the image processor that belongs to it.

    Attributes:
        vision_tower: the ``CLIPVisionModel``; absent until loaded.
        image_processor: turns PIL images into pixels; absent until loaded.
        is_loaded: whether the two exist.
    """

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        """Load the tower, or only its config with ``delay_load``.

        With ``delay_load`` and ``args.unfreeze_mm_vision_tower`` the model is built without weights, because
        the LLaVA checkpoint that is being loaded brings them.
        """
        super().__init__()
        self.is_loaded = False
        self.vision_tower_name = vision_tower
        self.select_layer = args.mm_vision_select_layer
        self.select_feature = getattr(args, "mm_vision_select_feature", "patch")
        if self.select_feature not in ("patch", "cls_patch"):
            raise ValueError(
                f"unknown mm_vision_select_feature {self.select_feature!r}: use patch or cls_patch"
            )
        self.register_load_state_dict_pre_hook(_accept_old_names)
        if not delay_load:
            self.load_model()
            return
        self.cfg_only = _from_folder(CLIPVisionConfig, vision_tower)
        if getattr(args, "unfreeze_mm_vision_tower", False):
            self.image_processor = _from_folder(CLIPImageProcessorPil, vision_tower)
            self.vision_tower = CLIPVisionModel(self.cfg_only)
            self._finish_loading()

    def load_model(self, device_map: Any = None) -> None:
        """Read weights (float32) and image processor; does nothing when they are there.

        Raises:
            FileNotFoundError: when the files cannot be read.
            ValueError: when the files lack weights of the tower.
        """
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
        layers = self.config.num_hidden_layers
        if not -layers - 1 <= self.select_layer <= layers:
            raise ValueError(
                f"mm_vision_select_layer {self.select_layer} does not exist: the tower has {layers} layers"
            )
        self.is_loaded = True

    def feature_select(self, hidden_states: tuple[Tensor, ...]) -> Tensor:
        """One layer's states (N, 1 + patches, hidden), without the class token for "patch"."""
        features = hidden_states[self.select_layer]
        return features[:, 1:] if self.select_feature == "patch" else features

    @torch.no_grad()
    def forward(self, images: Tensor | list[Tensor]) -> Any:
        """Pixels (N, 3, H, W) -> features (N, num_patches, hidden_size) in the pixels' dtype.

        A list of (3, H, W) pixels gives a list of (1, num_patches, hidden_size). One more feature, the class
        token's, comes first with "cls_patch".
        """
        if isinstance(images, list):
            return [self.forward(image[None]) for image in images]
        states = self.vision_tower(
            images.to(self.device, self.dtype), output_hidden_states=True
        ).hidden_states
        return self.feature_select(states).to(images.dtype)

    @property
    def dummy_feature(self) -> Tensor:
        """A zero feature, (1, hidden_size)."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.vision_tower.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vision_tower.device

    @property
    def config(self) -> CLIPVisionConfig:
        """The vision model's config, also before loading."""
        return self.vision_tower.config if hasattr(self, "vision_tower") else self.cfg_only

    @property
    def hidden_size(self) -> int:
        """Size of one feature."""
        return self.config.hidden_size

    @property
    def num_patches_per_side(self) -> int:
        """Patches along one side of an image."""
        config: Any = self.config  # sizes may be typed as pairs; LLaVA's towers are square
        return config.image_size // config.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return self.num_patches_per_side**2


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
