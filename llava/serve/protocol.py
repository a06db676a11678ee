"""What the chat-completions interface takes and gives: OpenAI's fields, those that are refused, and its errors.

Called by :mod:`llava.serve.api`, :mod:`llava.serve.batching` and :mod:`llava.serve.messages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from dyvte.cli import extra

with extra("serve"):
    from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

WITHOUT_EFFECT = {
    *("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    *("service_tier", "store", "user"),
}
"""Fields that say nothing about the answer."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that this server cannot follow, with the values by which they change nothing."""
MOST_TOKENS = 1 << 20
FAULT = "the server failed on this request; its log says why"
COLDEST = 0.01
"""The lowest temperature but 0: logits divided by less overflow."""


class ApiError(Exception):
    """An error as OpenAI's clients read it; ``param`` names the field at fault."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Strict(BaseModel):
    """Unknown fields are errors; a field that is null is one that was not given."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class ImageUrl(Strict):
    """An image: ``url`` is a data URL, or an http(s) address. ``detail`` changes nothing here."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class Part(Strict):
    """A piece of a message: text, or an image."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def has_what_its_type_says(self) -> Part:
        if self.type not in self.model_fields_set:
            raise ValueError(f"a part of type {self.type} needs the field {self.type}")
        if len(self.model_fields_set) > 2:
            raise ValueError(f"a part of type {self.type} has no other field than {self.type}")
        return self


def _as_parts(given: Any) -> Any:
    return [{"type": "text", "text": given}] if isinstance(given, str) else given


class Message(Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts)]


class StreamOptions(Strict):
    """Of a streamed answer: whether a last chunk tells the usage."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(Strict):
    """The body of ``POST /v1/chat/completions``."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[int | None, Field(ge=1, le=MOST_TOKENS)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=MOST_TOKENS)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    stop: Annotated[
        list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)
    ] = []
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def without_what_changes_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name, values in NEUTRAL.items():
            if given.get(name) is not None and given[name] not in values:
                shown = " or ".join(repr(value) for value in values)
                raise ValueError(f"{name}: this server answers as with {shown}, and takes no other value")
        return {name: value for name, value in given.items() if name not in WITHOUT_EFFECT | NEUTRAL.keys()}

    @model_validator(mode="after")
    def fits_together(self) -> ChatRequest:
        if not all(self.stop) or len(self.stop) > 16:
            raise ValueError("stop: give at most 16 texts, none of them empty")
        if self.temperature and self.temperature < COLDEST:
            raise ValueError(f"temperature: give 0, or {COLDEST} or more")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: they need stream to be true")
        return self


def read_request(body: bytes) -> ChatRequest:
    """The request that a body holds.

    Raises:
        ApiError: it is not valid; one sentence that names the field.
    """
    try:
        return ChatRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ApiError(400, *_sentence(first["type"], first["loc"], first["msg"])) from None


def _sentence(kind: str, place: Sequence[str | int], message: str) -> tuple[str, str | None]:
    """(message, field) of a finding of pydantic's."""
    message = message.removeprefix("Value error, ")
    if kind == "json_invalid":
        return f"the body is not JSON: {message.removeprefix('Invalid JSON: ')}", None
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if not field:  # of several fields: the message begins with the one at fault
        name, colon, _ = message.partition(":")
        return message, name if colon else None
    if kind == "extra_forbidden":
        message = "this server knows no such field"
    elif kind == "missing":
        message = "this field is missing"
    return f"{field}: {message[:1].lower()}{message[1:]}", field


class Measures(BaseModel):
    """What the prefill did for this answer (:class:`~dyvte.decoding.report.PrefillReport`).

    Attributes:
        exit_layer: zero-based; null where the image stayed to the end, or there was none.
        tflops, saved_tflops: of the prefill, in 10^12 FLOPs.
        kv_bytes, kv_bytes_saved: of the cache after the prefill.
        batch_size: requests that were answered together.
    """

    exit_layer: int | None
    num_layers: int
    visual_tokens: int
    tflops: float
    saved_tflops: float
    kv_bytes: int
    kv_bytes_saved: int
    batch_size: int


class Usage(BaseModel):
    """Tokens of prompt (visual ones among them) and answer; ``x_dyvte`` is this project's own field."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    x_dyvte: Measures | None
