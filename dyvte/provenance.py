"""Where a number comes from: code, versions, machine, data."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

_MOST_DIGESTS = 20
_MODEL_FILES = ("config.json", "*.safetensors", "*.bin")
_GATES_FILE = "gates.safetensors"
PACKAGES = ("dyvte", "torch", "transformers", "tokenizers", "numpy", "pillow", "flash-attn", "bitsandbytes")


@functools.cache
def git_state(folder: Path | None = None) -> tuple[str | None, bool | None]:
    """Commit and whether the tree differs from it; (None, None) where there is no repository or no git."""
    folder = folder or Path(__file__).resolve().parents[1]
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    # an installed package may lie in another project's repository, whose commit says nothing about this code
    if (
        commit is None
        or _output("git", "-C", str(folder), "ls-files", "--error-unmatch", "dyvte/provenance.py") is None
    ):
        return None, None
    return commit, bool(_output("git", "-C", str(folder), "status", "--porcelain"))


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str | int | list[str]]:
    """Processor, cores this process may use, and GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"system": platform.platform(), "cpu": _cpu_model(), "cores": cores, "gpus": gpus}


def sha256_of(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """SHA-256 of each file, by its path below ``root``; of many files one over all their digests."""
    digests = {}
    for path in sorted(paths):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        digests[path.relative_to(root).as_posix()] = digest.hexdigest()
    if len(digests) <= _MOST_DIGESTS:
        return digests
    together = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return {f"{len(digests)} files": hashlib.sha256(together.encode()).hexdigest()}


def checkpoint_digest(model_path: str, tower: str | None = None) -> str:
    """SHA-256 over a checkpoint's config and weights, and over those of a vision tower in a folder elsewhere.

    Gates beside the weights do not count: they change no state of the model.
    """
    folder = Path(model_path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model_path, allow_patterns=list(_MODEL_FILES)))
    files = {path for pattern in _MODEL_FILES for path in folder.rglob(pattern) if path.name != _GATES_FILE}
    digests = sorted(sha256_of([path], folder).popitem() for path in files)
    elsewhere = Path(tower) if tower and not (folder / tower).is_dir() else None
    if elsewhere is not None and elsewhere.is_dir():
        digests.append(("tower", checkpoint_digest(str(elsewhere))))
    return hashlib.sha256(repr(digests).encode()).hexdigest()


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
