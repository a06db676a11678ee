"""Which vision tower a config means, and where its files are.

Called by :mod:`llava.model.builder` and :mod:`llava.model.llava_arch`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.model.checkpoint import find_file, tensor_shapes
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.eagle_encoder import MixtureTower
from llava.model.multimodal_encoder.intern_encoder import INSIDE, POSITIONS, InternVisionTower
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.variants import is_internvit, is_mixture


def build_vision_tower(config, delay_load: bool = False, **kwargs) -> VisionTower:
    """Make the tower that ``config.mm_vision_tower`` (in training arguments: ``vision_tower``) names.

    Args:
        config: model config or LLaVA's ``ModelArguments``; its ``mm_vision_select_*`` fields apply.
        delay_load: read only the tower's config now; weights come with ``load_model``.

    Raises:
        ValueError: when no tower is named, or it is of a kind that is not supported.
        FileNotFoundError: when the tower's folder does not exist.
    """
    name = getattr(config, "mm_vision_tower", None) or getattr(config, "vision_tower", None)
    if not name:
        raise ValueError(
            "no vision tower is named: set mm_vision_tower in the config, or pass --vision_tower"
        )
    if getattr(config, "s2", False):
        raise ValueError(f"the multi-scale (s2) form of vision tower {name!r} is not supported")
    checkpoint = getattr(config, "_name_or_path", None)
    if is_mixture(name):
        if not delay_load:
            raise ValueError(f"the weights of {name!r} come with an Eagle checkpoint only: start from one")
        return MixtureTower(name, config)
    if is_internvit(name):
        return build_internvit(name, config, delay_load, checkpoint)
    path = resolve_tower_path(name, checkpoint)
    return CLIPVisionTower(path, args=config, delay_load=delay_load)


def build_internvit(name: str, config: Any, delay_load: bool, checkpoint: str | None) -> InternVisionTower:
    """The tower from its own folder or Hub id where there is one, else from the checkpoint."""
    try:
        folder = resolve_tower_path(name, checkpoint)
        if not Path(folder).is_dir():  # perhaps on the Hub, which is not asked for what is here already
            inside = checkpoint and tensor_shapes(checkpoint, INSIDE, POSITIONS)
            folder = folder if not inside and find_file(folder, "config.json") else None
    except FileNotFoundError:
        folder = None
    tower = InternVisionTower(name, config, folder, checkpoint)
    if not delay_load:
        tower.load_model()
    return tower


def resolve_tower_path(name: str, checkpoint: str | None = None) -> str:
    """Where the tower is: a folder as given, a folder inside the checkpoint's, or a Hub id (``owner/name``).

    Raises:
        FileNotFoundError: when ``name`` is none of these; it lists the places looked at.
    """
    places = [Path(name).expanduser()]
    if checkpoint:
        places.append(Path(checkpoint).expanduser() / name)
    for place in places:
        if (place / "config.json").is_file():
            return str(place)
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")
    if is_hub_id and not any(place.exists() for place in places):
        return name
    looked = " and ".join(str(place) for place in dict.fromkeys(places))
    raise FileNotFoundError(f"vision tower {name!r} not found: no config.json in {looked}")
