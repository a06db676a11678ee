"""What a training run writes, and how it is read back to resume.

One of three kinds: the projector alone (``mm_projector.bin``), LoRA adapters with the other trained weights
beside them (``non_lora_trainables.bin``), or the full model as safetensors. A frozen vision tower is never
written, because its own folder holds it. ``load_X`` reads what ``save_X`` wrote into a model of the same shape.

Called by :mod:`llava.train.llava_trainer`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dyvte.cli import needs
from dyvte.weights import load_tensors, reading

PROJECTOR_FILE = "mm_projector.bin"
NON_LORA_FILE = "non_lora_trainables.bin"
TOWER_KEY = "vision_tower."
PROJECTOR_KEYS = ("mm_projector", "image_newline")
EMBEDDING_KEY = "embed_tokens"

StateDict = dict[str, Tensor]


def save_projector(model, folder: Path, state: StateDict) -> None:
    """Write ``config.json`` and ``mm_projector.bin`` (keys ``model.mm_projector.*``)."""
    model.config.save_pretrained(folder)
    # the token embeddings are trained as well where the image has start and end tokens
    parts = PROJECTOR_KEYS + (EMBEDDING_KEY,) * bool(getattr(model.config, "mm_use_im_start_end", False))
    own = {key: value for key, value in state.items() if any(part in key for part in parts)}
    torch.save(_on_cpu(own), folder / PROJECTOR_FILE)


def load_projector(model, folder: Path) -> None:
    _load_part(model, load_tensors(folder / PROJECTOR_FILE))


def save_lora(model, folder: Path, state: StateDict) -> None:
    """Write the adapter, the model's config, and the trained weights that are no adapter."""
    model.save_pretrained(folder, state_dict=state)
    model.config.save_pretrained(folder)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    others = {key: value for key, value in state.items() if key in names and "lora_" not in key}
    torch.save(_on_cpu(others), folder / NON_LORA_FILE)


def load_lora(model, folder: Path) -> None:
    peft: Any = needs("peft", "train")
    with reading(folder):
        peft.set_peft_model_state_dict(model, peft.load_peft_weights(str(folder), device="cpu"))
    _load_part(model, load_tensors(folder / NON_LORA_FILE))


def save_full(model, folder: Path, state: StateDict | None = None) -> None:
    """Write the model as safetensors shards, its tower only where that was trained."""
    state = model.state_dict() if state is None else state
    if not any(TOWER_KEY in name and p.requires_grad for name, p in model.named_parameters()):
        state = {key: value for key, value in state.items() if TOWER_KEY not in key}
    generation = getattr(model, "generation_config", None)
    # transformers refuses to write Vicuna's, a temperature without sampling
    if generation and (generation.temperature or generation.top_p or generation.top_k):
        generation.do_sample = True
    model.save_pretrained(folder, state_dict=state)


def load_full(model, folder: Path) -> None:
    """Raises FileNotFoundError where there are no safetensors, ValueError where they lack a weight of another part
    than a frozen tower.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no model*.safetensors to resume from")
    missing = {key for key, _ in model.named_parameters() if TOWER_KEY not in key}
    missing -= set(getattr(model, "all_tied_weights_keys", None) or ())
    for file in files:
        weights = load_tensors(file)
        _load_part(model, weights)
        missing -= weights.keys()
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} weights of this model, such as {min(missing)}")


def _load_part(model: nn.Module, weights: StateDict) -> None:
    """Load some weights of a model; every one must have a place."""
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"the checkpoint holds {len(unexpected)} weights this model lacks: {unexpected[:3]}")


def _on_cpu(state: StateDict) -> StateDict:
    """Contiguous copies on the CPU, so that a file holds no more than its own tensors."""
    return {key: value.detach().cpu().clone() for key, value in state.items()}
