"""Serve a model to clients of OpenAI's chat-completions interface, several requests answered together.

    python -m llava.serve.api --model-path MODEL [--gates GATES] [--port 8000]

docs/server.md says what it takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from dyvte.cli import extra, run

with extra("serve"):
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import JSONResponse, StreamingResponse
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

from dyvte.engine.model import Generation, model_name_of
from dyvte.engine.options import add_loading_arguments, add_method_arguments, open_answerer
from llava.serve.batching import Batcher, Job, Piece
from llava.serve.listen import listen
from llava.serve.messages import Conversation, Limits, read_messages
from llava.serve.protocol import FAULT, ApiError, ChatRequest, read_request

T = TypeVar("T")
PREPARING = 8
"""Threads that decode and fetch images."""
BODY_SECONDS = 60
"""For which a request's body may be on its way."""
CHARACTERS_PER_TOKEN = 64
"""No tokenizer puts more into a token on average; longer prompts are refused before they are tokenized."""
MOST = {
    "batch-size": (16, "requests answered together, at most"),
    "max-requests": (128, "answered and waiting; more get status 429"),
    "max-images": (16, "of a request"),
    "max-megapixels": (32, "of all images of a request together"),
    "max-held-megapixels": (512, "of all requests together; more get status 429"),
    "max-body-mb": (32, "size of a request"),
}
"""Flags of positive whole numbers: default, and help."""


@dataclass(frozen=True)
class Settings:
    """How the server answers.

    Attributes:
        name: of the model, as requests name it.
        default: how to generate where a request does not say.
        limits: of images.
        places: requests that may be there at once, answered and waiting.
        pixels: of the images of these requests together; they wait decoded, 3 bytes a pixel.
        body_bytes: of a request.
    """

    name: str
    default: Generation
    limits: Limits
    places: int
    pixels: int
    body_bytes: int


class Visitors:
    """The requests that are there, with the pixels of their images; each leaves once, whatever becomes of it."""

    def __init__(self, places: int, pixels: int) -> None:
        self._places, self._most_pixels, self._there = places, pixels, dict[threading.Event, int]()

    def __len__(self) -> int:
        return len(self._there)

    @property
    def pixels(self) -> int:
        """Of all their images."""
        return sum(self._there.values())

    def enter(self) -> threading.Event:
        """An event that :meth:`leave` sets.

        Raises:
            ApiError: there are too many.
        """
        if len(self) >= self._places:
            raise ApiError(
                429, f"the server is busy with {self._places} requests: try again later", None, "busy"
            )
        gone = threading.Event()
        self._there[gone] = 0
        return gone

    def bring(self, gone: threading.Event, images: Sequence[Image.Image]) -> None:
        """Count the images of a request.

        Raises:
            ApiError: they are too many beside those of the others. A request that is alone may bring any.
        """
        pixels = sum(image.width * image.height for image in images)
        if self.pixels and self.pixels + pixels > self._most_pixels:
            megapixels = self._most_pixels // 1_000_000
            message = f"the server holds images of up to {megapixels} megapixels: try again later"
            raise ApiError(429, message, None, "busy")
        if gone in self._there:
            self._there[gone] = pixels

    def leave(self, gone: threading.Event) -> None:
        gone.set()
        self._there.pop(gone, None)


def make_app(batcher: Batcher, settings: Settings) -> FastAPI:
    """The application: ``/v1/chat/completions``, ``/v1/models`` and ``/health``; closes the batcher at its end."""
    pool = ThreadPoolExecutor(PREPARING, "images")
    visitors = Visitors(settings.places, settings.pixels)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown(cancel_futures=True)
        batcher.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    model = {"id": settings.name, "object": "model", "created": int(time.time()), "owned_by": "dyvte"}

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> Response:
        headers = {"Retry-After": "1"} if error.status == 429 else None
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> Response:
        told = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        return JSONResponse(told.body(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:  # the log gets the error itself
        return JSONResponse(ApiError(500, FAULT).body(), 500)

    @app.exception_handler(ClientDisconnect)
    async def nobody_listens(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)

    @app.get("/health")
    async def health() -> Response:
        content = {
            "status": "ok" if batcher.alive else "dead",
            "model": settings.name,
            "requests": len(visitors),
            "megapixels": visitors.pixels / 1_000_000,
        }
        return JSONResponse(content, 200 if batcher.alive else 503)

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        _check_model(name, settings.name)
        return JSONResponse(model)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        gone, streams = visitors.enter(), False
        try:
            body = await _body(request, settings.body_bytes)
            response = await _unless_gone(request, answer(body, gone))
            streams = isinstance(response, _Stream)  # which leaves at its own end
            return response
        finally:
            if not streams:
                visitors.leave(gone)

    async def answer(body: bytes, gone: threading.Event) -> Response:
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | ApiError]()

        def send(piece: Piece | ApiError) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        wanted, job = await loop.run_in_executor(pool, _prepare, body, batcher, settings, send, gone)
        visitors.bring(gone, job.images)
        batcher.submit(job)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": settings.name}
        first = await _next(pieces)  # where the request fails, its status says so
        if wanted.stream:
            with_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
            return _Stream(_events(head, first, pieces, with_usage), lambda: visitors.leave(gone))
        text, last = first.text, first
        while last.usage is None:
            last = await _next(pieces)
            text += last.text
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.finish_reason}
        content = {"object": "chat.completion", "choices": [choice], "usage": last.usage.model_dump()}
        return JSONResponse({**head, **content})

    return app


def _prepare(
    body: bytes,
    batcher: Batcher,
    settings: Settings,
    send: Callable[[Piece | ApiError], None],
    gone: threading.Event,
) -> tuple[ChatRequest, Job]:
    """A request's body as a job for the batcher.

    Raises:
        ApiError: the request is refused.
    """
    wanted = read_request(body)
    _check_model(wanted.model, settings.name)
    generation = _generation(wanted, settings.default)
    conversation = read_messages(wanted.messages, settings.limits)
    prompt = _prompt(conversation, batcher)
    return wanted, Job(prompt, conversation.images, generation, wanted.stop, send, gone)


def _generation(wanted: ChatRequest, default: Generation) -> Generation:
    temperature = default.temperature if wanted.temperature is None else wanted.temperature
    if temperature and wanted.seed is not None:
        message = (
            "seed: requests are sampled together, so none has random numbers of its own; give temperature 0"
        )
        raise ApiError(400, message, "seed")
    tokens = wanted.max_completion_tokens or wanted.max_tokens or default.max_new_tokens
    return Generation(tokens, temperature, wanted.top_p if temperature and wanted.top_p < 1 else None)


def _prompt(conversation: Conversation, batcher: Batcher) -> str:
    try:
        prompt = batcher.chat.prompt(conversation.question, conversation.history, conversation.system)
    except ValueError as error:
        raise ApiError(400, f"messages: {error}", "messages") from None
    if len(prompt) > CHARACTERS_PER_TOKEN * batcher.context:
        message = f"messages: {len(prompt)} characters are too long for this model's {batcher.context} tokens"
        raise ApiError(400, message, "messages", "context_length_exceeded")
    if conversation.images and batcher.chat.handle is None:
        raise ApiError(400, "messages: this model takes no images", "messages")
    return prompt


def _check_model(name: str, served: str) -> None:
    if name != served:
        message = f"model: there is no model {name[:80]!r} here, only {served!r}"
        raise ApiError(404, message, "model", "model_not_found")


async def _body(request: Request, most: int) -> bytes:
    """The body of a request of JSON.

    Raises:
        ApiError: it is too large, does not come, or is of another type.
        ClientDisconnect: the client left.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "send the body as JSON, with the header Content-Type: application/json")

    async def read() -> bytes:
        content = bytearray()
        async for piece in request.stream():
            content += piece
            if len(content) > most:
                raise ApiError(413, f"the body has more than {most} bytes")
        return bytes(content)

    try:
        return await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS} s") from None


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client leaves.

    Raises:
        ClientDisconnect: it has left.
    """

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leaves())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _next(pieces: asyncio.Queue[Piece | ApiError]) -> Piece:
    piece = await pieces.get()
    if isinstance(piece, ApiError):
        raise piece
    return piece


class _Stream(StreamingResponse):
    """Server-sent events; ``leave`` is called at the end, whether or not anything was sent."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], leave: Callable[[], None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._leave = leave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _events(
    head: dict[str, Any], piece: Piece, pieces: asyncio.Queue[Piece | ApiError], with_usage: bool
) -> AsyncIterator[str]:
    """An answer as chunks, from its first piece on."""
    usage = {"usage": None} if with_usage else {}

    def chunk(delta: dict[str, str], reason: str | None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**head, "object": "chat.completion.chunk", "choices": [choice], **usage})

    yield chunk({"role": "assistant", "content": ""}, None)
    try:
        while True:
            if piece.text:
                yield chunk({"content": piece.text}, None)
            if piece.usage is not None:
                break
            piece = await _next(pieces)
    except ApiError as error:  # the status is sent already
        yield _event(error.body())
        return
    yield chunk({}, piece.finish_reason)
    if with_usage:
        last = {"object": "chat.completion.chunk", "choices": [], "usage": piece.usage.model_dump()}
        yield _event({**head, **last})
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def make_server(args: argparse.Namespace) -> uvicorn.Server:
    """The server that command-line arguments ask for, with its model loaded; ``run`` starts it.

    Raises:
        ValueError, OSError: an argument is wrong, or files are missing.
    """
    for flag in MOST:
        if (given := getattr(args, flag.replace("-", "_"))) < 1:
            raise ValueError(f"--{flag} must be positive, got {given}")
    if args.batch_wait_ms < 0:
        raise ValueError(f"--batch-wait-ms must not be negative, got {args.batch_wait_ms}")
    answerer = open_answerer(args, args.conv_mode)
    settings = Settings(
        args.served_model_name or model_name_of(args.model_path),
        answerer.generation,
        Limits(args.max_images, args.max_megapixels * 1_000_000, args.allow_urls),
        args.max_requests,
        args.max_held_megapixels * 1_000_000,
        args.max_body_mb << 20,
    )
    app = make_app(Batcher(answerer, args.batch_size, args.batch_wait_ms / 1000), settings)
    return uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=10
        )
    )


def main(args: argparse.Namespace) -> None:
    """Load the model and serve it until a signal ends the process."""
    with listen(args.host, args.port) as listener:
        server = make_server(args)
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"The model answers at http://{host}:{listener.getsockname()[1]}/v1", flush=True)
        server.run(sockets=[listener])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Serve a model to clients of OpenAI's chat-completions interface."
    )
    parser.add_argument("--model-path", type=os.path.expanduser, required=True, help="folder or Hub id")
    parser.add_argument(
        "--served-model-name", help="how requests name the model (default: its folder's name)"
    )
    parser.add_argument("--conv-mode", help="prompt template (default: the one the checkpoint asks for)")
    add_loading_arguments(parser)
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="of requests that name none (0: greedy)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, help="of requests that name no max_tokens")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; other machines need 0.0.0.0"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any free one, which is printed")
    for flag, (default, purpose) in MOST.items():
        parser.add_argument(f"--{flag}", type=int, default=default, help=purpose)
    parser.add_argument(
        "--batch-wait-ms", type=float, default=5.0, help="how long a request waits for others"
    )
    parser.add_argument(
        "--allow-urls", action="store_true", help="open images at http(s) addresses, of public hosts alone"
    )
    add_method_arguments(parser)
    return parser


if __name__ == "__main__":
    run(build_parser(), main)
