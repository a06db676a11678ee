"""From the messages of a request to a question with its history, in the engine's terms.

Called by :mod:`llava.serve.api`.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from dyvte.engine.images import decode_image
from dyvte.engine.questions import IMAGE_TOKEN, Question, check_text
from dyvte.engine.video import frames_of
from llava.serve.fetch import fetch
from llava.serve.protocol import ApiError, Message, Part

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What a request may bring.

    Attributes:
        images: of all its messages.
        pixels: of all its images together.
        allow_urls: whether images may be named by http(s) addresses.
        url_bytes, url_seconds: of each such image.
    """

    images: int = 16
    pixels: int = 32_000_000
    allow_urls: bool = False
    url_bytes: int = 20_000_000
    url_seconds: float = 10.0


@dataclass
class Conversation:
    """A conversation whose last message is a question."""

    question: Question = Question("")
    history: list[tuple[Question, str]] = field(default_factory=list)
    system: str | None = None

    @property
    def images(self) -> list[Image.Image]:
        """Those of all questions, in order."""
        asked = [*(question for question, _ in self.history), self.question]
        return frames_of([image for question in asked for image in question.images])


def read_messages(messages: Sequence[Message], limits: Limits) -> Conversation:
    """The conversation, with its images decoded.

    Raises:
        ApiError: the messages are not a system message, where there is one, and then questions and answers in turns,
            or an image cannot be had; it names the field.
    """
    conversation, pixels = Conversation(), _Pixels(limits)
    first = 1 if messages[0].role in ("system", "developer") else 0
    if first:
        conversation.system = _text(messages[0], "messages[0]")
    asked: Question | None = None
    for number, message in enumerate(messages[first:], first):
        place, expected = f"messages[{number}]", "user" if asked is None else "assistant"
        if message.role != expected:
            raise ApiError(
                400,
                f"{place}.role: must be {expected!r} here, not {message.role!r}: after a system message, if there is "
                "one, user and assistant take turns",
                f"{place}.role",
            )
        if asked is None:
            asked = _question(message, place, pixels)
        else:
            conversation.history.append((asked, _text(message, place)))
            asked = None
    if asked is None:
        raise ApiError(400, "messages: the last message must be the user's", "messages")
    conversation.question = asked
    return conversation


def _text(message: Message, place: str) -> str:
    """The text of a message without images."""
    for number, part in enumerate(message.content):
        if part.type != "text":
            where = f"{place}.content[{number}].type"
            raise ApiError(400, f"{where}: a message of the {message.role} holds text alone", where)
    text = "".join(part.text for part in message.content)
    _check(text, f"{place}.content")
    return text


def _question(message: Message, place: str, pixels: _Pixels) -> Question:
    """A user's message. One text stands behind all images, as LLaVA was trained, on whichever side they are given;
    of several, each image stands at its place between them."""
    parts = message.content
    images = [
        pixels.image(part, f"{place}.content[{n}]") for n, part in enumerate(parts) if part.type != "text"
    ]
    text = "".join(part.text for part in parts)
    _check(text, f"{place}.content", blank=bool(images))
    kinds = [part.type for part in parts if part.type != "text" or part.text]
    runs = sum(kind == "text" and (n == 0 or kinds[n - 1] != "text") for n, kind in enumerate(kinds))
    if runs > 1:
        text = "".join(part.text if part.type == "text" else f"{IMAGE_TOKEN}\n" for part in parts)
    return Question(text, images)


def _check(text: str, place: str, blank: bool = False) -> None:
    try:
        check_text(text, place)
    except ValueError as error:
        raise ApiError(400, str(error), place) from None
    if IMAGE_TOKEN in text:
        raise ApiError(
            400, f"{place}: the text {IMAGE_TOKEN} stands for an image in prompts; leave it out", place
        )
    if not blank and not text.strip():
        raise ApiError(400, f"{place}: the message is blank", place)


class _Pixels:
    """Opens the images of a request, within its limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._left, self._count = limits, limits.pixels, 0

    def image(self, part: Part, place: str) -> Image.Image:
        assert part.image_url is not None
        place = f"{place}.image_url.url"
        self._count += 1
        if self._count > self._limits.images:
            raise ApiError(400, f"{place}: the request has more than {self._limits.images} images", place)
        try:
            content = self._content(part.image_url.url)
            image = decode_image(io.BytesIO(content), "given here", self._left)
        except ValueError as error:
            raise ApiError(400, f"{place}: {error}", place) from None
        self._left -= image.width * image.height
        return image

    def _content(self, url: str) -> bytes:
        if head := _DATA_URL.match(url):
            try:
                return base64.b64decode(url[head.end() :], validate=True)
            except binascii.Error as error:
                raise ValueError(f"the data URL is not valid base64: {error}") from None
        if not url.startswith(("http://", "https://")):
            raise ValueError("give a data URL (data:image/png;base64,...)")
        if not self._limits.allow_urls:
            raise ValueError("this server opens no addresses (--allow-urls): send the image as a data URL")
        return fetch(url, self._limits.url_bytes, self._limits.url_seconds)
