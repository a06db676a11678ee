"""Files of weights, safetensors and ``.bin``: one place reads them, and tells what is wrong with one by its name.

Nothing is executed: ``.bin`` files are unpickled as tensors alone, and code in checkpoints stays unused.

Called from most of the project.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dyvte.io import check_file, read_json_object, whole_file
from dyvte.provenance import WEIGHT_FILES, shards_of

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What weights may be stored as; others need a ``quantization_config``."""
_FLOAT_NAMES = ("F16", "BF16", "F32", "F64")
_UNWRITTEN = "cannot be written"
_START = 200
"""Characters of a library's message that are told."""


@contextmanager
def reading(path: str | Path) -> Generator[None]:
    """Whatever a library raises in the block, where it reads ``path``, becomes one line that names the path.

    Raises:
        FileNotFoundError, OSError, ValueError: instead of what the library raised.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is damaged, or holds more than tensors, which is never run") from error
    except Exception as error:  # which ones a library has for broken files is not known
        told = " ".join(str(error).split())
        told = told if len(told) <= _START else f"{told[:_START]}..."
        told = told if str(path) in told else f"{path} cannot be read: {told}"
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(told) from error
        if isinstance(error, (OSError, ValueError)):
            raise (OSError if isinstance(error, OSError) else ValueError)(told) from error
        raise ValueError(f"{told} ({type(error).__name__})") from error


def tensors_in(path: str | Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(key, function that reads the tensor) of a file of weights.

    Raises:
        FileNotFoundError, ValueError: it is missing, not whole, or holds anything but tensors.
    """
    path = Path(path)
    with reading(path):
        check_file(path)
        if path.suffix != ".safetensors":
            for key, value in _tensors_of_bin(path, "cpu").items():
                yield key, value.clone
            return
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                yield key, partial(file.get_tensor, key)


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file of weights, on the CPU.

    Raises:
        FileNotFoundError, ValueError: as :func:`tensors_in`, and where a value is not finite.
    """
    tensors = {key: read() for key, read in tensors_in(path)}
    check_finite(tensors.items(), path)
    return tensors


def shapes_in(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a file of weights; no more than headers is read.

    Raises:
        FileNotFoundError, ValueError: as :func:`tensors_in`.
    """
    return {key: shape for key, (shape, _) in _headers(Path(path)).items()}


def check_checkpoint(folder: Path) -> int:
    """Find what is wrong with a checkpoint's weights before they are loaded; reads headers only.

    Returns:
        How many values they hold.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not whole, or weights are stored in a type that cannot be computed with.
    """
    config = folder / "config.json"
    quantized = bool(config.is_file() and read_json_object(config).get("quantization_config"))
    count = 0
    for file in _files_of(folder):
        for key, (shape, is_float) in _headers(file).items():
            if not is_float and not quantized and key.endswith(("weight", "bias")):
                raise ValueError(
                    f"{file}: {key} is stored in a type without a scale, and {config.name} has no "
                    "quantization_config: only float16, bfloat16, float32 and float64 can be loaded"
                )
            count += torch.Size(shape).numel()
    return count


def _files_of(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights; none where it has none.

    Raises:
        FileNotFoundError: one that the index names is missing.
        ValueError: the index is broken.
    """
    first = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if first is None or first.suffix != ".json":
        return [] if first is None else [first]
    files = [folder / shard for shard in sorted(shards_of(first))]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {file.name}: {first.name} names it")
    return files


def load_pretrained(
    cls: Any, path: str, may_lack: bool = False, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """A model of one of transformers' classes, and its loading info; no code of the checkpoint runs.

    Args:
        may_lack: weights that the files lack, or have in another shape, are left random: the caller fills them.

    Raises:
        FileNotFoundError, OSError, ValueError: a file is missing or broken, or a weight is missing or not finite.
    """
    if Path(path).is_dir():
        check_checkpoint(Path(path))
    with reading(path):
        model, info = cls.from_pretrained(
            path,
            output_loading_info=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # else transformers' report does not name them
            **options,
        )
    unfit = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    if unfit and not may_lack:
        raise ValueError(
            f"{len(unfit)} weights of {path} do not have the shape that its config asks for: {some(unfit)}"
        )
    if info["missing_keys"] and not may_lack:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"{path} lacks {len(missing)} of the model's weights: {some(missing)}")
    new = {*info["missing_keys"], *unfit}
    try:
        check_finite(model.state_dict().items(), path, new)
    except ValueError:
        for file in _files_of(Path(path)):  # which one holds it, under which name
            check_finite(((key, read()) for key, read in tensors_in(file)), file)
        raise
    return model, info


def some(names: list[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def check_finite(tensors: Iterable[tuple[str, Tensor]], path: str | Path, but: Collection[str] = ()) -> None:
    """Raise ValueError, naming the weight, where one of ``path`` is NaN or infinite; those in ``but`` are not its."""
    for name, value in tensors:
        if (
            value.dtype in FLOATS
            and not value.is_meta
            and name not in but
            and not torch.isfinite(value).all()
        ):
            raise ValueError(
                f"{path}: the weight {name} is not finite (NaN or infinity): write or download it again"
            )


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OSError: it cannot be written, for want of space or of permission; the message names it.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with writing(path), whole_file(path) as unfinished:
        save_file(tensors, unfinished, metadata={"format": "pt"})


@contextmanager
def writing(path: str | Path) -> Generator[None]:
    """What safetensors, torch and the system raise in the block, where ``path`` cannot be written, as OSError.

    Raises:
        OSError: instead of what the library raised; the message names the path.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())[:_START]
        # torch.save names its inline_container
        of_a_library = isinstance(error, SafetensorError) or "inline_container" in told
        if _UNWRITTEN in told or not (isinstance(error, OSError) or of_a_library):
            raise
        raise OSError(f"{path} {_UNWRITTEN}; is there space and permission? ({told})") from error


def _tensors_of_bin(path: Path, device: str) -> dict[str, Tensor]:
    # files of torch before 1.6 cannot be mapped
    mapped = {"mmap": True} if zipfile.is_zipfile(path) else {}
    loaded = torch.load(path, map_location=device, weights_only=True, **mapped)
    if not isinstance(loaded, dict) or not all(torch.is_tensor(value) for value in loaded.values()):
        raise ValueError(f"{path} holds something else than weights by name")
    return loaded


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Shape of each tensor, and whether it is stored as one of :data:`FLOATS`."""
    with reading(path):
        check_file(path)
        if path.suffix != ".safetensors":
            values = _tensors_of_bin(path, "meta").items()
            return {key: (tuple(value.shape), value.dtype in FLOATS) for key, value in values}
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            return {key: (tuple(s.get_shape()), s.get_dtype() in _FLOAT_NAMES) for key, s in slices.items()}
