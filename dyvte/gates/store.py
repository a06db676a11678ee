"""A store of states and of the effect of every exit, from which gates are fitted without running the model again.

A folder with ``manifest.json`` (:class:`Manifest`) and shards ``states-00000.safetensors``, ... Shard ``k`` covers
``shard_size`` samples of the training data, from ``k * shard_size`` on, and holds

- ``modality_lengths`` (m,) long, of all m samples of its range: what LLaVA's sampler groups by;
- ``index`` (n,) long: the samples that have states and an answer; the other tensors describe these, in this order:
- one tensor (n, L, D) for each stored state, under its name (:data:`dyvte.gates.states.STATES`);
- ``agreement`` (n, L) float32, ``loss_with_exit`` (n, L) and ``loss_without_exit`` (n,) float64, from which
  :func:`dyvte.gates.supervision.labels_of` makes labels for any alpha;
- ``prompt_tokens`` and ``visual_tokens`` (n,) long, for FLOPs.

A shard appears when it is complete, so that an interrupted pass resumes with the missing shards. Any number of
processes may write one store at once, on any machines that see the folder: each claims a shard at a time.

Shapes: L layers, D hidden size.

Called from :mod:`dyvte.gates` and :mod:`dyvte.study`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from dyvte.cli import needs
from dyvte.fields import MOST_LAYERS, TEXT, WIDEST, check_fields, listed, optional, record, whole
from dyvte.gates.identity import first_difference
from dyvte.gates.origin import Origin, TrainedOn
from dyvte.gates.supervision import labels_of
from dyvte.io import read_json_object, write_json
from dyvte.weights import reading, write_tensors

MANIFEST = "manifest.json"
FORMAT, VERSION = "dyvte-states", 1
MEASURED = ("agreement", "loss_with_exit", "loss_without_exit", "prompt_tokens", "visual_tokens")
FIELDS = {
    **dict.fromkeys(("model", "data", "dtype"), TEXT),
    "settings": record(),
    "states": listed(TEXT),
    "num_layers": whole(1, MOST_LAYERS),
    "hidden_size": whole(1, WIDEST),
    "samples": whole(1, 10**9),
    "shard_size": whole(1, 10**9),
    **dict.fromkeys(("base_model", "model_family"), optional(TEXT)),
}
"""What a manifest holds."""
NAMES_ONLY = ("base_model", "model_family")


@dataclass(frozen=True)
class Manifest:
    """What the content of a store depends on.

    Attributes:
        model, data: SHA-256 of the model's weights and of the training data.
        settings: of the prompts: template, image mode, length.
        states: names of the stored states.
        dtype: of the model.
        samples: of the training data.
        shard_size: samples of the data per shard.
        base_model, model_family: names for people; two stores that differ in these alone are the same.
    """

    model: str
    data: str
    settings: dict[str, Any]
    states: list[str]
    dtype: str
    num_layers: int
    hidden_size: int
    samples: int
    shard_size: int
    base_model: str | None = None
    model_family: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a store.

        Raises:
            FileNotFoundError: the folder holds no store.
            ValueError: the manifest is of another format, or lacks a field.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: dyvte.gates.store_states writes a store of states")
        fields = read_json_object(path)
        if (fields.pop("format", None), fields.pop("version", None)) != (FORMAT, VERSION):
            raise ValueError(f"{path} is not of the format that this version reads ({FORMAT}, {VERSION})")
        check_fields(fields, FIELDS, path)
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"{path} lacks a field or holds an unknown one ({error})") from None

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, **vars(self)}, indent=2)

    @property
    def origin(self) -> Origin:
        """What gates fitted to this store are marked with."""
        return Origin(self.base_model, self.model, self.model_family, TrainedOn(self.data, self.samples))

    @property
    def ranges(self) -> list[range]:
        """The samples of each shard."""
        size = self.shard_size
        return [range(start, min(start + size, self.samples)) for start in range(0, self.samples, size)]


class StoreWriter:
    """Writes a store, or goes on with one that the same model, data and settings began.

    Raises:
        ValueError: the folder holds a store of another identity, or the shard size is not positive.
    """

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        if manifest.shard_size < 1:
            raise ValueError(f"a shard needs at least one sample, got {manifest.shard_size}")
        self.folder, self.manifest = Path(folder), manifest
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):  # of several that start now, one writes the manifest
            if not (self.folder / MANIFEST).is_file():
                manifest.write(self.folder)
            have = vars(Manifest.read(self.folder))
        if found := first_difference(have, vars(manifest), NAMES_ONLY):
            raise ValueError(
                f"{folder} is a store of another {found[0]}: it has {found[1]}, this run has {found[2]}; choose "
                "another folder or remove it"
            )

    def missing(self) -> list[tuple[int, range]]:
        """Number and samples of each shard that is not there yet."""
        shards = enumerate(self.manifest.ranges)
        return [(number, part) for number, part in shards if not _shard(self.folder, number).is_file()]

    def claims(self) -> Generator[tuple[int, range]]:
        """The missing shards, each while it is this process's to write; those that others are writing are left out.

        A process that dies gives its shard up, for the next run to write.
        """
        for number, part in self.missing():
            lock = FileLock(self.folder / f".{_shard(self.folder, number).stem}.lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            try:
                if not _shard(self.folder, number).is_file():  # else written since this process looked
                    yield number, part
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
                lock.release()

    def write(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Write a shard, whole or not at all."""
        write_tensors(_shard(self.folder, number), tensors)


class StateStore(Dataset):
    """A finished store; as a dataset, an entry for each sample of the data, empty for samples without states.

    Args:
        folder: what :class:`StoreWriter` wrote.
        states: which states entries hold, joined in this order; all by default.

    Raises:
        FileNotFoundError: the folder holds no store.
        ValueError: the store is unfinished or of another format, or lacks a state.
    """

    def __init__(self, folder: str | Path, states: Sequence[str] | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        held = self.manifest.states
        self.states = tuple(held if states is None else states)
        if unknown := [name for name in self.states if name not in held]:
            raise ValueError(f"{folder} holds the states {', '.join(held)}, not {', '.join(unknown)}")
        self.num_layers, self.hidden_size = self.manifest.num_layers, self.manifest.hidden_size
        self._shards = [_shard(self.folder, number) for number in range(len(self.manifest.ranges))]
        if absent := [path for path in self._shards if not path.is_file()]:
            raise ValueError(
                f"{folder} lacks {len(absent)} of {len(self._shards)} shards: run dyvte.gates.store_states again "
                "with the same settings to resume it"
            )
        self._open: dict[int, Any] = {}

    @cached_property
    def modality_lengths(self) -> list[int]:
        """What LLaVA's sampler groups by, of every sample of the data."""
        return self._joined("modality_lengths").tolist()

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
        return self.manifest.samples

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """``states`` (L, K * D) and what was measured; empty where the sample has no states."""
        if sample not in self._places:
            return {}
        entry = self._entry(sample)
        return {"states": torch.cat([entry.pop(name) for name in self.states], dim=-1), **entry}

    def _entry(self, sample: int) -> dict[str, Tensor]:
        """Each state (L, D) of a sample that has them, and what was measured."""
        number, row = self._places[sample]
        file = self._file(number)
        return {name: file.get_slice(name)[row : row + 1][0] for name in (*self.states, *MEASURED)}

    def read(self, *names: str) -> list[Tensor]:
        """Whole tensors of all N samples that have states, in the order of :attr:`index`."""
        return [self._joined(name) for name in names]

    def labels(self, alpha: float = 1.03) -> Tensor:
        """(N, L) long, 1 where an exit keeps the answer."""
        agreement, with_exit, without = self.read("agreement", "loss_with_exit", "loss_without_exit")
        return labels_of(agreement, with_exit, without, alpha)

    def to_datasets(self, alpha: float = 1.03):
        """The samples that have states as a ``datasets.Dataset``, in numpy's format.

        Columns: ``index``, each state (L, D), ``labels`` (L,), and :data:`MEASURED`. bfloat16 becomes float32.
        """
        datasets: Any = needs("datasets", "study")

        def rows():
            for sample, labels in zip(self.index.tolist(), self.labels(alpha).numpy(), strict=True):
                values = self._entry(sample).items()
                entry = {name: (x.float() if x.dtype == torch.bfloat16 else x).numpy() for name, x in values}
                yield {"index": sample, "labels": labels, **entry}

        return datasets.Dataset.from_generator(rows).with_format("numpy")

    def __getstate__(self) -> dict:
        """Without open files, for worker processes."""
        return {**self.__dict__, "_open": {}}

    def _file(self, number: int):
        if number not in self._open:
            with reading(self._shards[number]):
                self._open[number] = safe_open(self._shards[number], framework="pt").__enter__()
        return self._open[number]

    def _joined(self, name: str) -> Tensor:
        return torch.cat([self._file(number).get_tensor(name) for number in range(len(self._shards))])


def _shard(folder: Path, number: int) -> Path:
    return folder / f"states-{number:05d}.safetensors"
