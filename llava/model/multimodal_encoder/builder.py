"""Which vision tower a config means, and where its files are."""

from __future__ import annotations

from pathlib import Path

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower


def build_vision_tower(config, delay_load: bool = False, **kwargs) -> CLIPVisionTower:
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
    path = resolve_tower_path(name, getattr(config, "_name_or_path", None))
    return CLIPVisionTower(path, args=config, delay_load=delay_load)


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
