"""A store of states and of what exits would do: gates are fitted from it without running the model again.

A folder with ``manifest.json`` and shards ``states-00000.safetensors``, ... Shard ``k`` is of the samples
``k * shard_size`` and on of the training data, and holds

- ``modality_lengths`` (m,) long and ``counted`` (m,) bool: of all m samples of its range, what LLaVA's sampler groups
  by, and whether a sample has an image and an answer;
- ``index`` (n,) long: the samples that have states and an answer; all further tensors are of these, in this order:
- one tensor (n, L, D) for each stored state, under its name (:data:`dyvte.gates.states.STATES`);
- ``agreement`` (n, L) float32, ``loss_with_exit`` (n, L) and ``loss_without_exit`` (n,) float64, of which labels for
  any alpha are made (:func:`dyvte.gates.supervision.labels_of`);
- ``prompt_tokens`` and ``visual_tokens`` (n,) long, for FLOPs.

The manifest names all that the content depends on. A shard appears when it is complete, so that an interrupted pass
goes on with the shards that are missing.

Shapes: L layers, D hidden size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from dyvte.gates.supervision import labels_of

MANIFEST = "manifest.json"
FORMAT, VERSION = "dyvte-states", 1
MEASURED = ("agreement", "loss_with_exit", "loss_without_exit", "prompt_tokens", "visual_tokens")


class StoreWriter:
    """Writes a store, or goes on with one that the same model, data and settings began.

    Args:
        folder: the store's folder.
        identity: what the content depends on, for JSON: ``model`` and ``data`` digests, ``settings``, ``states``,
            ``dtype``, ``num_layers``, ``hidden_size``, ``samples``.
        shard_size: samples of the data per shard.

    Raises:
        ValueError: the folder holds a store of another identity, or a shard size is not positive.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any], shard_size: int) -> None:
        if shard_size < 1:
            raise ValueError(f"a shard needs at least one sample, got {shard_size}")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manifest = {"format": FORMAT, "version": VERSION, **identity, "shard_size": shard_size}
        if (self.folder / MANIFEST).is_file():
            check_identity(_read_manifest(self.folder), self.manifest, self.folder)
        else:
            _write_text(self.folder / MANIFEST, json.dumps(self.manifest, indent=2) + "\n")

    def missing(self) -> list[tuple[int, range]]:
        """Number and samples of each shard that is not there yet."""
        shards = enumerate(_ranges(self.manifest["samples"], self.manifest["shard_size"]))
        return [(number, part) for number, part in shards if not _shard(self.folder, number).is_file()]

    def write(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Write a shard; it is there whole or not at all."""
        path = _shard(self.folder, number)
        unfinished = path.with_suffix(f".tmp{os.getpid()}")
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(tensors, unfinished, metadata={"format": "pt"})
        os.replace(unfinished, path)


class StateStore(Dataset):
    """A finished store; as a dataset, one entry for each sample of the training data, with or without states.

    Args:
        folder: what :class:`StoreWriter` wrote.
        states: which states entries hold, joined in this order; all by default.

    Raises:
        FileNotFoundError: the folder holds no store.
        ValueError: the store is unfinished or of another format, or lacks a state.
    """

    def __init__(self, folder: str | Path, states: Sequence[str] | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        held = self.manifest["states"]
        self.states = tuple(held if states is None else states)
        if unknown := [name for name in self.states if name not in held]:
            raise ValueError(f"{folder} holds the states {', '.join(held)}, not {', '.join(unknown)}")
        self.num_layers: int = self.manifest["num_layers"]
        self.hidden_size: int = self.manifest["hidden_size"]
        ranges = _ranges(self.manifest["samples"], self.manifest["shard_size"])
        absent = [number for number in range(len(ranges)) if not _shard(self.folder, number).is_file()]
        if absent:
            raise ValueError(
                f"{folder} lacks {len(absent)} of {len(ranges)} shards: run dyvte.gates.store_states again with "
                "the same settings, it goes on where it stopped"
            )
        self._shards = [_shard(self.folder, number) for number in range(len(ranges))]
        self._open: dict[int, Any] = {}

    def check(self, **identity: Any) -> None:
        """Compare entries of the manifest, such as ``model=digest``.

        Raises:
            ValueError: one differs; the message names both values.
        """
        check_identity(self.manifest, {**self.manifest, **identity}, self.folder)

    @cached_property
    def modality_lengths(self) -> list[int]:
        """What LLaVA's sampler groups by, of every sample of the data."""
        return self._joined("modality_lengths").tolist()

    @cached_property
    def counted(self) -> list[bool]:
        """Whether a sample has an image and an answer, of every sample of the data."""
        return self._joined("counted").tolist()

    @cached_property
    def index(self) -> Tensor:
        """(N,) long: the samples that have states."""
        return self._joined("index")

    @cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        """Sample -> (shard, row in it)."""
        return {
            sample: (number, row)
            for number in range(len(self._shards))
            for row, sample in enumerate(self._file(number).get_tensor("index").tolist())
        }

    def __len__(self) -> int:
        return self.manifest["samples"]

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """``counted``; and where the sample has states, ``states`` (L, K * D) and what was measured."""
        entry: dict[str, Any] = {"counted": self.counted[sample]}
        if sample in self._places:
            number, row = self._places[sample]
            file = self._file(number)
            entry["states"] = torch.cat([file.get_slice(name)[row] for name in self.states], dim=-1)
            entry |= {name: file.get_slice(name)[row : row + 1][0] for name in MEASURED}
        return entry

    def read(self, *names: str) -> list[Tensor]:
        """Whole tensors of all N samples that have states, in the order of :attr:`index`."""
        return [self._joined(name) for name in names]

    def labels(self, alpha: float = 1.03) -> Tensor:
        """(N, L) long: 1 where the image may leave."""
        agreement, with_exit, without = self.read("agreement", "loss_with_exit", "loss_without_exit")
        return labels_of(agreement, with_exit, without, alpha)

    def to_datasets(self, alpha: float = 1.03):
        """The samples that have states as a ``datasets.Dataset`` (the library is an extra), in numpy's format.

        Columns: ``index``, each state (L, D), ``labels`` (L,), and what was measured. bfloat16 becomes float32.
        """
        import datasets  # pyright: ignore[reportMissingImports] - an extra

        labels = self.labels(alpha)

        def rows():
            for number, sample in enumerate(self.index.tolist()):
                shard, row = self._places[sample]
                file = self._file(shard)
                values = {name: file.get_slice(name)[row : row + 1][0] for name in (*self.states, *MEASURED)}
                states = {name: values[name].float().numpy() for name in self.states}
                others = {name: values[name].numpy() for name in MEASURED}
                yield {"index": sample, **states, "labels": labels[number].numpy(), **others}

        shape = (self.num_layers, self.hidden_size)
        per_layer = {"labels": "int64", "agreement": "float32", "loss_with_exit": "float64"}
        scalars = {
            "index": "int64",
            "loss_without_exit": "float64",
            "prompt_tokens": "int64",
            "visual_tokens": "int64",
        }
        features = datasets.Features(
            {name: datasets.Array2D(shape, "float32") for name in self.states}
            | {name: datasets.Sequence(datasets.Value(kind)) for name, kind in per_layer.items()}
            | {name: datasets.Value(kind) for name, kind in scalars.items()}
        )
        return datasets.Dataset.from_generator(rows, features=features).with_format("numpy")

    def __getstate__(self) -> dict:
        """Without open files, for worker processes."""
        return {**self.__dict__, "_open": {}}

    def _file(self, number: int):
        if number not in self._open:
            self._open[number] = safe_open(self._shards[number], framework="pt").__enter__()
        return self._open[number]

    def _joined(self, name: str) -> Tensor:
        return torch.cat([self._file(number).get_tensor(name) for number in range(len(self._shards))])


def check_identity(found: dict[str, Any], wanted: dict[str, Any], folder: str | Path) -> None:
    """Compare two manifests.

    Raises:
        ValueError: they differ; the message names the entry and both values.
    """
    for name in sorted(found.keys() | wanted.keys()):
        have, want = found.get(name), wanted.get(name)
        if isinstance(have, dict) and isinstance(want, dict):
            check_identity(have, want, folder)
        elif have != want:
            raise ValueError(
                f"{folder} is a store of another {name}: it has {have}, this run has {want}; choose another "
                "folder or remove it"
            )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: dyvte.gates.store_states writes a store of states")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path} is not of the format that this version reads ({FORMAT}, {VERSION})")
    return manifest


def _shard(folder: Path, number: int) -> Path:
    return folder / f"states-{number:05d}.safetensors"


def _ranges(samples: int, size: int) -> list[range]:
    return [range(start, min(start + size, samples)) for start in range(0, samples, size)]


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_suffix(f".tmp{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
