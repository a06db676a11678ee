"""What a training run writes, and how it is read back to resume.

One of three kinds: the projector alone (``mm_projector.bin``), LoRA adapters with the other trained weights
beside them (``non_lora_trainables.bin``), or the full model as safetensors. A frozen vision tower is never
written, because its own folder holds it.

Called by :mod:`llava.train.llava_trainer`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dyvte.cli import extra
from dyvte.weights import load_tensors, reading

PROJECTOR_FILE = "mm_projector.bin"
NON_LORA_FILE = "non_lora_trainables.bin"
TOWER_KEY = "vision_tower."
PROJECTOR_KEYS = ("mm_projector", "image_newline")
EMBEDDING_KEY = "embed_tokens"

StateDict = dict[str, Tensor]


def save_projector(model, folder: str | Path, state: StateDict | None = None) -> None:
    """Write ``config.json`` and ``mm_projector.bin`` (keys ``model.mm_projector.*``)."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    # the token embeddings are trained as well where the image has start and end tokens
    parts = PROJECTOR_KEYS + (EMBEDDING_KEY,) * bool(getattr(model.config, "mm_use_im_start_end", False))
    state = model.state_dict() if state is None else state
    own = {key: value for key, value in state.items() if any(part in key for part in parts)}
    torch.save(_on_cpu(own), Path(folder) / PROJECTOR_FILE)


def load_projector(model, folder: str | Path) -> None:
    """Read what :func:`save_projector` wrote into a model of the same shape."""
    _load_part(model, load_tensors(Path(folder) / PROJECTOR_FILE))


def save_lora(model, folder: str | Path, state: StateDict | None = None) -> None:
    """Write the adapter, the model's config, and the trained weights that are no adapter."""
    state = model.state_dict() if state is None else state
    model.save_pretrained(folder, state_dict=state)
    model.config.save_pretrained(folder)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    others = {key: value for key, value in state.items() if key in names and "lora_" not in key}
    torch.save(_on_cpu(others), Path(folder) / NON_LORA_FILE)


def load_lora(model, folder: str | Path) -> None:
    """Read what :func:`save_lora` wrote into a PEFT model of the same shape."""
    with extra("train"):
        from peft import load_peft_weights, set_peft_model_state_dict

    with reading(folder):
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    _load_part(model, load_tensors(Path(folder) / NON_LORA_FILE))


def save_full(model, folder: str | Path, state: StateDict | None = None) -> None:
    """Write the model as safetensors shards, its tower only where that was trained."""
    state = model.state_dict() if state is None else state
    if not any(TOWER_KEY in name and p.requires_grad for name, p in model.named_parameters()):
        state = {key: value for key, value in state.items() if TOWER_KEY not in key}
    generation = getattr(model, "generation_config", None)
    if (
        generation
        and not generation.do_sample
        and (generation.temperature or generation.top_p or generation.top_k)
    ):
        generation.do_sample = True  # transformers refuses to write Vicuna's, a temperature without sampling
    model.save_pretrained(folder, state_dict=state)


def load_full(model, folder: str | Path) -> None:
    """Read what :func:`save_full` wrote into a model of the same shape.

    Raises:
        FileNotFoundError: when the folder holds no safetensors.
        ValueError: when a weight other than those of a frozen tower is missing.
    """
    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no model*.safetensors to resume from")
    missing = {key for key, _ in model.named_parameters()}
    for file in files:
        weights = load_tensors(file)
        _load_part(model, weights)
        missing -= set(weights)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = {key for key in missing - tied if TOWER_KEY not in key}
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
