"""Questions as the command lines ask them, whatever file they come from, and what can be known to be wrong with them
before a model is loaded.

Fields of the files are LLaVA's, and must stay.

Called from most of the project.
"""

from __future__ import annotations

import argparse
import io
import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dyvte.engine.images import decode_image, load_image, path_inside
from dyvte.engine.json_rows import JsonRows
from dyvte.engine.video import (
    DEFAULT,
    Sampling,
    Video,
    VideoFile,
    Visual,
    add_video_arguments,
    frames_of,
    load_video,
    sampling_of,
)

TROUBLES_SHOWN = 5
"""Questions that cannot be asked and are named; of the others the number is told."""
LONGEST_SHOWN = 80
"""Characters of a value in a message."""
IMAGE_TOKEN = "<image>"
"""Where an image belongs in a question's text; a text without it is asked after its images."""
_IMAGE_PLACES = re.compile(f"{re.escape(IMAGE_TOKEN)}|<image-placeholder>|<video>")

Images = Sequence["str | bytes | VideoFile"]


@dataclass(frozen=True)
class Question:
    """What to ask, and about which images (RGB) and videos."""

    text: str
    images: Sequence[Visual] = ()

    def around_images(self) -> list[str]:
        """The text cut where its images stand, one piece more than there are images. Images that the text has no
        place for stand in front, each on a line of its own.

        Raises:
            ValueError: the text has places for another number of images than it comes with.
        """
        check_places(self.text, len(self.images))
        pieces, count = _IMAGE_PLACES.split(self.text), len(self.images)
        if len(pieces) == 1 and count:
            return ["", *["\n"] * (count - 1), "\n" + self.text]
        return pieces

    def with_frames(self) -> Question:
        """The question with the frames of its videos as images, each on a line of its own."""
        if not any(isinstance(image, Video) for image in self.images):
            return self
        text, *pieces = self.around_images()
        for visual, piece in zip(self.images, pieces, strict=True):
            places = len(visual.frames) if isinstance(visual, Video) else 1
            text += "\n".join([IMAGE_TOKEN] * places) + piece
        return Question(text, frames_of(self.images))


@dataclass(frozen=True)
class Item:
    """One question of a file.

    Attributes:
        head: the fields of the answer line that come from the question: ``question_id``, ``prompt``, and more where
            LLaVA's format has more.
        text: what the model is asked; images it has no ``<image>`` for stand in front of it.
        images: names of files within the image folder, encoded files, or videos.
        place: file and line, for error messages.
    """

    head: dict[str, Any]
    text: str
    images: Images = ()
    place: str = ""

    @property
    def name(self) -> str:
        where = f" ({self.place})" if self.place else ""
        return f"question {shown(self.head['question_id'])}{where}"


def read_lines(path: str) -> JsonRows[tuple[str, dict[str, Any]]]:
    """(place, row) of each line of a JSON-lines file, read when asked for.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: it is in another encoding than UTF-8. Asking for a row: it is not an object with a question_id;
            the message names the line.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"question file not found: {file}")
    return JsonRows(file, _row_of)


def _row_of(row: Any, place: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: not a question but {shown(row)}")
    if "question_id" not in row:
        raise ValueError(f"{place}: a question without question_id")
    return place, row


def item_of(row: Mapping[str, Any], place: str = "", sampling: Sampling = DEFAULT) -> Item:
    """A row of LLaVA's question files: ``question_id``, ``text`` and, where there is one, ``image`` (or a list), or
    ``video`` (or a list). A question with both is about its images first.

    Args:
        sampling: which frames of videos are taken.

    Raises:
        ValueError: ``image`` or ``video`` is something else; the message names the question.
    """
    text = row.get("text")
    item = Item({"question_id": row["question_id"], "prompt": text}, "" if text is None else text, (), place)
    with naming(item):
        videos = [VideoFile(name, sampling) for name in image_names(row.get("video"), "video")]
        return replace(item, images=(*image_names(row.get("image")), *videos))


def image_names(value: Any, field: str = "image") -> tuple[str, ...]:
    """The field ``image`` or ``video`` of a question: a file name, a list of some, or nothing.

    Raises:
        ValueError: it is something else.
    """
    if value is None or value == "":
        return ()
    names = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{field} must be a file name or a list of file names, not {shown(value)}")
    return tuple(names)


@dataclass(frozen=True)
class QuestionFormat:
    """A format of question files: how it is read, and the flags of the command line that asks it.

    Attributes:
        read: the questions of ``args.question_file``, as the flags of ``add_flags`` ask for them; a flag that
            ``args`` lacks takes its default. Raises FileNotFoundError or ValueError, naming file and entry, at once
            or when a question is asked for.
        add_flags: adds the flags that only this format has.
        question_file, conv_mode, max_new_tokens: defaults of the flags that all formats have, as in LLaVA.
        description: of the command line.
    """

    read: Callable[[argparse.Namespace], Sequence[Item]]
    description: str
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    question_file: str = "tables/question.jsonl"
    conv_mode: str = "llava_v1"
    max_new_tokens: int = 128


def _items(args: argparse.Namespace, sampling: Sampling) -> Sequence[Item]:
    return read_lines(args.question_file).map(lambda row: item_of(row[1], row[0], sampling))


JSON_LINES = QuestionFormat(
    read=lambda args: _items(args, sampling_of(args)),
    add_flags=add_video_arguments,
    description="Answer a JSON-lines file of questions about images and videos.",
)
OPEN_QUESTIONS = replace(JSON_LINES, max_new_tokens=1024)
"""JSON lines that ask for long answers (MM-Vet, LLaVA-Bench)."""


def check_items(items: Sequence[Item], folder: str | Path) -> None:
    """Find what is wrong with any question before hours of inference.

    Raises:
        FileNotFoundError, ValueError: naming the first questions that cannot be asked, with file, line and field,
            and how many more there are.
    """
    troubles = Troubles()
    for number in range(len(items)):
        with troubles.noted():
            _check(items[number], folder)
    troubles.tell()


class Troubles:
    """What is wrong with questions: the first few in words, of the others the number."""

    def __init__(self) -> None:
        self._first: list[Exception] = []
        self._count = 0

    @contextmanager
    def noted(self) -> Generator[None]:
        """A ValueError or OSError in the block is kept instead of raised."""
        try:
            yield
        except (ValueError, OSError) as error:
            self._count += 1
            if len(self._first) < TROUBLES_SHOWN:
                self._first.append(error)

    def tell(self) -> None:
        """Raise one error about all of them; FileNotFoundError where files are missing and nothing else is wrong."""
        if not self._count:
            return
        missing = all(isinstance(error, FileNotFoundError) for error in self._first)
        more = self._count - len(self._first)
        told = "; ".join(str(error) for error in self._first)
        message = f"{told} ({more} more questions cannot be asked)" if more else told
        raise FileNotFoundError(message) if missing else ValueError(message)


def prepare(item: Item, folder: str | Path) -> Question:
    """The question with its images, if it has any, read as RGB.

    Raises:
        FileNotFoundError, ValueError: naming the question, when its text or an image is not usable.
    """
    _check(item, folder)  # again: files may be gone since the questions were checked
    with naming(item):
        return Question(item.text, [load_visual(image, folder) for image in item.images])


def load_visual(image: str | bytes | VideoFile, folder: str | Path) -> Visual:
    """One of an item's images or videos, read.

    Raises:
        FileNotFoundError, ValueError: it cannot be read.
    """
    if isinstance(image, VideoFile):
        return load_video(image.name, image.sampling, folder)
    if isinstance(image, str):
        return load_image(image, folder)
    return decode_image(io.BytesIO(image), name="in the question file")


@contextmanager
def naming(item: Item) -> Generator[None]:
    """Errors in the block begin with the question's name."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{item.name}: {error}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{item.name}: {error}") from error


@contextmanager
def naming_all(items: Sequence[Item]) -> Generator[None]:
    """A ValueError in the block, which answers a batch, begins with the name of its question, or of the first."""
    try:
        yield
    except ValueError as error:
        others = f" or one of the {len(items) - 1} after it" if len(items) > 1 else ""
        raise ValueError(f"{items[0].name}{others}: {error}") from error


def _check(item: Item, folder: str | Path) -> None:
    question_id, text = item.head["question_id"], item.text
    if isinstance(question_id, bool) or not isinstance(question_id, (str, int, float)):
        raise ValueError(f"{item.name}: question_id must be text or a number")
    if isinstance(question_id, float) and not math.isfinite(question_id):
        raise ValueError(f"{item.name}: question_id is no finite number")
    with naming(item):
        check_text(question_id if isinstance(question_id, str) else "", "question_id")
        if not isinstance(text, str):
            raise ValueError(f"text must be text, not {shown(text)}")
        if not text.strip():
            raise ValueError("it has no text: the field text is missing or blank")
        check_text(text, "text")
        check_places(text, len(item.images))
        for image in item.images:
            kind, name = ("video", image.name) if isinstance(image, VideoFile) else ("image", image)
            if isinstance(name, str):
                check_text(name, kind)
                if "\0" in name:
                    raise ValueError(f"{kind}: the file name {shown(name)} holds a NUL character")
                if not path_inside(folder, name).is_file():
                    raise FileNotFoundError(f"{kind} file not found: {Path(folder) / name}")


def check_places(text: str, images: int) -> None:
    """Raise ValueError where a text has places for another number of images than it comes with."""
    places = len(_IMAGE_PLACES.findall(text))
    if places and places != images:
        raise ValueError(f"the text has places for {places} images, but comes with {images}: {shown(text)}")


def check_text(text: str, field: str) -> None:
    """Raise ValueError for half of a character, which no tokenizer and no file system takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(f"{field} holds {half!a}, half of a character (a lone surrogate)") from None


def shown(value: Any) -> str:
    """A value on one line, cut where it is long."""
    text = ascii(value) if not isinstance(value, str) or not value.isprintable() else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
