"""Questions as the command lines ask them, whatever file they come from, and what can be known to be wrong with them
before a model is loaded.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from dyvte.engine.images import decode_image, load_image, path_inside

LONGEST_SHOWN = 80
"""Characters of a value in a message."""
IMAGE_TOKEN = "<image>"
"""Where an image belongs in a question's text; a text without it is asked after its images."""
_IMAGE_PLACES = re.compile(f"{re.escape(IMAGE_TOKEN)}|<image-placeholder>")

Images = Sequence["str | bytes"]


@dataclass(frozen=True)
class Question:
    """What to ask, and about which images (RGB)."""

    text: str
    images: Sequence[Image.Image] = ()

    def around_images(self) -> list[str]:
        """The text cut where its images stand, one piece more than there are images. Images that the text has no
        place for stand in front, each on a line of its own.

        Raises:
            ValueError: the text has places for another number of images than it comes with.
        """
        pieces, count = _IMAGE_PLACES.split(self.text), len(self.images)
        if len(pieces) == 1 and count:
            return ["", *["\n"] * (count - 1), "\n" + self.text]
        if len(pieces) != count + 1:
            raise ValueError(
                f"the question has places for {len(pieces) - 1} images, but comes with {count}: {self.text!r}"
            )
        return pieces


@dataclass(frozen=True)
class Item:
    """One question of a file.

    Attributes:
        head: the fields of the answer line that come from the question: ``question_id``, ``prompt``, and more where
            LLaVA's format has more.
        text: what the model is asked; images it has no ``<image>`` for stand in front of it.
        images: names of files within the image folder, or encoded files.
        place: file and line, for error messages.
    """

    head: dict[str, Any]
    text: str
    images: Images = ()
    place: str = ""

    @property
    def name(self) -> str:
        where = f" ({self.place})" if self.place else ""
        return f"question {self.head['question_id']!r}{where}"


def read_lines(path: str) -> list[tuple[str, dict[str, Any]]]:
    """(place, row) of each line of a JSON-lines file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming the line that is not an object with a question_id.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"question file not found: {file}")
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            row = json.loads(line)
            row["question_id"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{place}: not a question with a question_id ({error})") from error
        rows.append((place, row))
    return rows


def item_of(row: dict[str, Any], place: str = "") -> Item:
    """A row of LLaVA's question files: ``question_id``, ``text`` and, where there is one, ``image`` (or a list)."""
    images = row.get("image") or []
    images = (images,) if isinstance(images, str) else tuple(images)
    text = row.get("text")
    return Item({"question_id": row["question_id"], "prompt": text}, text or "", images, place)


@dataclass(frozen=True)
class QuestionFormat:
    """A format of question files: how it is read, and the flags of the command line that asks it.

    Attributes:
        read: the questions of ``args.question_file``, as the flags of ``add_flags`` ask for them; a flag that
            ``args`` lacks takes its default. Raises FileNotFoundError or ValueError, naming file and entry.
        add_flags: adds the flags that only this format has.
        question_file, conv_mode, max_new_tokens: defaults of the flags that all formats have, as in LLaVA.
        description: of the command line.
    """

    read: Callable[[argparse.Namespace], list[Item]]
    description: str
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    question_file: str = "tables/question.jsonl"
    conv_mode: str = "llava_v1"
    max_new_tokens: int = 128


JSON_LINES = QuestionFormat(
    read=lambda args: [item_of(row, place) for place, row in read_lines(args.question_file)],
    description="Answer a JSON-lines file of questions about images.",
)
OPEN_QUESTIONS = replace(JSON_LINES, max_new_tokens=1024)
"""JSON lines that ask for long answers (MM-Vet, LLaVA-Bench)."""


def check_items(items: Sequence[Item], folder: str | Path) -> None:
    """Find what is wrong with any question before hours of inference.

    Raises:
        FileNotFoundError, ValueError: naming the first question without text, or whose image is missing or lies
            outside the folder, and how many more there are.
    """
    troubles: list[Exception] = []
    for item in items:
        try:
            _check(item, folder)
        except (ValueError, FileNotFoundError) as error:
            troubles.append(error)
    if troubles:
        more = f" ({len(troubles) - 1} more questions cannot be asked)" if len(troubles) > 1 else ""
        raise type(troubles[0])(f"{troubles[0]}{more}")


def prepare(item: Item, folder: str | Path) -> Question:
    """The question with its images, if it has any, read as RGB.

    Raises:
        FileNotFoundError, ValueError: naming the question, when its text or an image is not usable.
    """
    _check(item, folder)
    with naming(item):
        inside = partial(decode_image, name="in the question file")
        loaded = [load_image(i, folder) if isinstance(i, str) else inside(io.BytesIO(i)) for i in item.images]
    return Question(item.text, loaded)


@contextmanager
def naming(item: Item) -> Generator[None]:
    """Errors in the block begin with the question's name."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{item.name}: {error}") from error


def _check(item: Item, folder: str | Path) -> None:
    if not isinstance(item.text, str) or not item.text.strip():
        raise ValueError(f"{item.name} has no text")
    with naming(item):
        for image in item.images:
            if isinstance(image, str) and not path_inside(folder, image).is_file():
                raise FileNotFoundError(f"image file not found: {Path(folder) / image}")


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
