"""Instruction data in LLaVA's format: a JSON list of ``{"id", "image", "conversations": [{"from", "value"}, ...]}``,
or one of these on each line.

``image`` is a path or a list of paths, absent from samples of text alone.

Called from :mod:`dyvte.engine`, :mod:`dyvte.gates` and :mod:`llava.train`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyvte.engine.images import path_inside
from dyvte.engine.json_rows import JsonRows
from dyvte.engine.questions import IMAGE_TOKEN, check_text, image_names, shown
from dyvte.provenance import sha256_of

if TYPE_CHECKING:
    from dyvte.engine.model import TrainingSet

PROBLEMS_SHOWN = 5
"""Samples that cannot be used and are named; of the others the number is told."""


def read_records(data_path: str | Path) -> Sequence[Any]:
    """An instruction file: a JSON list, or a sample on each line (``.jsonl``). A sample is read when it is asked for;
    what it holds is for :func:`check_records` to say.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not a nonempty JSON list. Asking for a sample: its line is not JSON.
    """
    path = Path(data_path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no instruction data at {path}: check --data_path")
    records = JsonRows(path, _as_it_is, is_list=path.suffix != ".jsonl")
    if not len(records):
        raise ValueError(
            f"{path} must hold a nonempty JSON list of samples; files of one a line end in .jsonl"
        )
    return records


def _as_it_is(record: Any, place: str) -> Any:
    return record


def image_paths(record: dict[str, Any]) -> list[str]:
    """The images of a record, in order; none for a text-only one.

    Raises:
        ValueError: ``image`` is neither a file name nor a list of file names.
    """
    image = record.get("image")
    names = list(image_names(image))
    for name in names:
        if "\0" in name:
            raise ValueError(f"image must be a file name or a list of file names, not {shown(image)}")
        check_text(name, "image")
    return names


def check_turns(turns: Sequence[Mapping[str, str]]) -> None:
    """Raise ValueError unless human and gpt alternate, the first turn left out where it is not the human's, as LLaVA
    does.
    """
    if turns and turns[0]["from"] != "human":
        if IMAGE_TOKEN in turns[0]["value"]:
            raise ValueError(
                f"its first turn, which is left out because it is not the human's, holds {IMAGE_TOKEN}"
            )
        turns = turns[1:]
    if not turns:
        raise ValueError("the conversation has no turn of the human")
    for index, turn in enumerate(turns):
        if turn["from"] != ("human", "gpt")[index % 2]:
            raise ValueError(f"turn {index} is from {shown(turn['from'])}; human and gpt must alternate")


def check_records(
    records: Sequence[Any],
    data_path: str | Path,
    image_folder: str | Path | None,
    takes_images: bool = True,
    turns_fit: Callable[[list[dict[str, str]]], Any] = check_turns,
) -> None:
    """Find what is wrong with any record before a model is trained.

    Args:
        data_path: where they come from, for the message.
        image_folder: where their images are; None for paths of their own.
        turns_fit: raises ValueError for turns that the prompt template has no place for.

    Raises:
        FileNotFoundError, ValueError: naming the first few records that cannot be used, and how many there are.
    """
    problems: list[str] = []
    count, missing_alone = 0, True
    for number, record in enumerate(records):
        try:
            _check_record(record, image_folder, takes_images, turns_fit)
        except (ValueError, OSError) as error:
            count += 1
            missing_alone &= isinstance(error, FileNotFoundError)
            name = shown(record["id"]) if isinstance(record, dict) and "id" in record else "without id"
            if len(problems) < PROBLEMS_SHOWN:
                problems.append(f"sample {name} (number {number}): {error}")
    if count:
        kind = FileNotFoundError if missing_alone else ValueError
        listed = "; ".join(problems) + ("; ..." if count > len(problems) else "")
        raise kind(f"{data_path}: {count} of {len(records)} samples cannot be used: {listed}")


def _check_record(
    record: Any,
    image_folder: str | Path | None,
    takes_images: bool,
    turns_fit: Callable[[list[dict[str, str]]], Any],
) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"a sample must be a JSON object, not {shown(record)}")
    turns = record.get("conversations")
    if not turns:
        raise ValueError("it has no conversations")
    if not isinstance(turns, list):
        raise ValueError(f"conversations must be a list of turns, not {shown(turns)}")
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("from", "value")):
            raise ValueError(f"a turn needs text as 'from' and 'value', not {shown(turn)}")
        check_text(turn["value"], "value")
    images = image_paths(record)
    places = sum(turn["value"].count(IMAGE_TOKEN) for turn in turns)
    if images and not takes_images:
        raise ValueError("it has an image, but no --vision_tower is given")
    if images and places != len(images):
        raise ValueError(f"it has {len(images)} images but {places} {IMAGE_TOKEN} tokens")
    turns_fit(turns)
    for image in images:
        if image_folder is None and image.startswith(("http://", "https://")):
            continue
        path = Path(image) if image_folder is None else path_inside(image_folder, image)
        if not path.is_file():
            raise FileNotFoundError(f"image file not found: {path}")


def check_targets(dataset: TrainingSet, data_path: str | Path) -> None:
    """Raise ValueError when no sample has a token to learn from; the first that has one ends the search."""
    count = len(dataset)
    if not any(dataset.has_target(index) for index in range(count)):
        raise ValueError(
            f"{data_path}: none of the {count} samples has a token to learn from: answers are empty, or lie behind "
            "--model_max_length, which images count against, or (for gates) follow no image"
        )


def modality_lengths(records: Sequence[dict[str, Any]]) -> list[int]:
    """Words per sample, negative for text-only ones: what LLaVA's sampler groups by."""
    lengths = []
    for record in records:
        words = sum(len(turn["value"].split()) for turn in record["conversations"])
        lengths.append(words if image_paths(record) else -words)
    return lengths


def data_digest(data_path: str | Path, records: Sequence[dict[str, Any]], image_folder: str | Path) -> str:
    """SHA-256 over an instruction file, and the names and sizes of the images in its records."""
    path = Path(data_path).expanduser()
    digest = hashlib.sha256(sha256_of([path], path.parent)[path.name].encode())
    for record in records:
        for image in image_paths(record):
            file = Path(image_folder) / image
            digest.update(f"{image} {file.stat().st_size if file.is_file() else 'missing'}\n".encode())
    return digest.hexdigest()
