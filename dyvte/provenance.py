"""Where a number comes from: code, versions, machine, data.

Called from most of the project.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dyvte.io import read_json_object

_MOST_DIGESTS = 20
WEIGHT_FILES = tuple(
    name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")
)
"""In the order in which a checkpoint's weights are looked for."""
_GATES = "visual_gates"  # in the name of the shard that init_weight.py --merge adds to a checkpoint
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_BESIDE_A_BASE = ("adapter_config.json", "non_lora_trainables.bin", "mm_projector.bin")
_BESIDE_WEIGHTS = (
    *("generation_config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "processor_config.json", "preprocessor_config.json"),
    *("video_preprocessor_config.json",),
)
"""What is read beside the weights, of whichever family: tokenizer, templates, image processor."""
PACKAGES = (
    *("dyvte", "torch", "transformers", "tokenizers", "numpy", "pillow", "flash-attn", "bitsandbytes"),
    "lmms_eval",  # where it asks the questions
)


@functools.cache
def git_state(folder: Path | None = None) -> tuple[str | None, bool | None]:
    """Commit and whether the tree differs from it; (None, None) where there is no repository or no git."""
    git = ("git", "-C", str(folder or Path(__file__).resolve().parents[1]))
    commit = _output(*git, "rev-parse", "HEAD")
    # an installed package may lie in another project's repository, whose commit says nothing about this code
    if commit is None or _output(*git, "ls-files", "--error-unmatch", "dyvte/provenance.py") is None:
        return None, None
    return commit, bool(_output(*git, "status", "--porcelain"))


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def hardware() -> dict[str, str | int | list[str]]:
    """Processor, cores this process may use, and GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"system": platform.platform(), "cpu": _cpu_model(), "cores": cores, "gpus": gpus}


def sha256_of(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """SHA-256 of each file, by its path below ``root``; of many files one over all their digests."""
    digests = {path.relative_to(root).as_posix(): file_sha256(path) for path in sorted(paths)}
    if len(digests) <= _MOST_DIGESTS:
        return digests
    together = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return {f"{len(digests)} files": hashlib.sha256(together.encode()).hexdigest()}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; one that did not change since is not read again."""
    stat = path.stat()
    return _sha256(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, state: tuple[int, ...]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checkpoint_files(folder: Path, has_base: bool = False) -> list[Path]:
    """``config.json`` and the files of a checkpoint that its weights are loaded from, those of merged gates left out.

    Where there are several formats, transformers takes the first of safetensors and .bin, and shards by their index.

    Args:
        has_base: whether the folder holds what is added to another model: LoRA weights or a projector.
    """
    names = ["config.json"]
    if has_base:
        names += _BESIDE_A_BASE
        names += [name for name in _ADAPTER if (folder / name).is_file()][:1]
    else:
        weights = [name for name in WEIGHT_FILES if (folder / name).is_file()][:1]
        for name in weights:
            shards = shards_of(folder / name) if name.endswith(".json") else {name}
            names += sorted(shard for shard in shards if _GATES not in shard)
    return [folder / name for name in names if (folder / name).is_file()]


def shards_of(index: str | Path) -> dict[str, set[str]]:
    """The files that an index names, each with its keys.

    Raises:
        FileNotFoundError, ValueError: there is no such index, or a name leads out of its folder.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: weight_map must say in which file each weight is")
    shards: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or "\0" in name or "\\" in name:
            raise ValueError(f"{index}: weight_map names {name!r} for {key}, which is no file beside it")
        shards.setdefault(name, set()).add(key)
    return shards


def checkpoint_digest(model_path: str, tower: str | None = None, base: str | None = None) -> str:
    """SHA-256 over the config and the weights that a model is loaded from; gates beside them do not count.

    Args:
        model_path: folder, or a Hub id that was downloaded.
        tower: the vision tower of the config; one that is a folder, in the checkpoint or elsewhere, counts.
        base: the model that LoRA weights or a projector in ``model_path`` are added to.

    Raises:
        FileNotFoundError: there is no such folder, and nothing was downloaded under this name.
    """
    folder = checkpoint_folder(model_path)
    parts = sorted(sha256_of([file], folder).popitem() for file in checkpoint_files(folder, base is not None))
    if place := _tower_folder(folder, tower, base):
        parts.append(("tower", checkpoint_digest(str(place))))
    if base is not None:
        parts.append(("base", checkpoint_digest(base)))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def loaded_digest(model_path: str, base: str | None = None) -> str:
    """SHA-256 over all files that a model's answers depend on: what :func:`checkpoint_digest` covers, and tokenizer,
    generation settings, templates and image processor. Other files in the folders do not count.

    Raises:
        FileNotFoundError: there is no such folder, and nothing was downloaded under this name.
        ValueError: ``config.json`` is broken.
    """
    folder = checkpoint_folder(model_path)
    config = folder / "config.json"
    tower = read_json_object(config).get("mm_vision_tower") if config.is_file() else None
    tower = tower if isinstance(tower, str) else None
    folders = [folder, checkpoint_folder(base) if base else None, _tower_folder(folder, tower, base)]
    parts = [checkpoint_digest(model_path, tower, base)]
    for place in folders:
        files = [place / name for name in _BESIDE_WEIGHTS if (place / name).is_file()] if place else []
        parts.append(repr([(file.name, file_sha256(file)) for file in files]))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _tower_folder(folder: Path, tower: str | None, base: str | None) -> Path | None:
    """The vision tower's folder, by itself, in the checkpoint or in its base; None for one of the Hub, or inside."""
    places = [Path(tower).expanduser(), folder / tower, Path(base or "") / tower] if tower else []
    return next((place for place in places if (place / "config.json").is_file()), None)


def checkpoint_folder(model_path: str) -> Path:
    """The folder of a checkpoint, or the snapshot that was downloaded under this name.

    Raises:
        FileNotFoundError: there is neither.
    """
    folder = Path(model_path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download  # only here: commands that load no model do not wait for it
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model_path, local_files_only=True))
    except HFValidationError:
        raise FileNotFoundError(f"model folder not found: {model_path}") from None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
