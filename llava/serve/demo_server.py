"""What visitors of the demo's page may send and see: their own uploads within limits, and messages without paths.

:mod:`llava.serve.demo_page` makes such a page, :mod:`llava.serve.demo` serves it.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from dyvte.cli import extra
from dyvte.engine.images import decode_image

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
with extra("demo"):
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
    from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)
MAX_FILE = "10mb"
"""Of an upload."""
MAX_BODY = 12_000_000
"""Bytes of a request: an upload and what it is wrapped in."""
MAX_PIXELS = 50_000_000
"""Of an image: as many as a phone's camera gives. They are counted before it is decoded."""
MAX_WAITING = 16
"""Questions that may wait for their answers."""
MAX_SESSIONS = 100
"""Open pages whose conversations are kept."""
KEPT_SECONDS = 3600
"""For how long uploads, and conversations of pages left alone, stay."""


class Page(gr.Blocks):
    """A page whose visitors name their own uploads and nothing else."""

    def __init__(self, title: str) -> None:
        super().__init__(title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS))

    async def preprocess_data(self, block_fn, inputs, state, explicit_call=False) -> list[Any]:
        """What an event's function gets. The image is the only file among it."""
        if any(isinstance(value, dict) and "://" in str(value.get("path")) for value in inputs):
            raise refusal("Upload the image: addresses are not read.")  # gradio would fetch it
        for block, value in zip(block_fn.inputs, inputs, strict=False):
            if isinstance(block, gr.Slider) and not isinstance(value, (int, float)):  # an emptied field
                raise refusal(f"{block.label}: give a number.")
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except gr.Error:
            raise
        except Exception as error:  # gradio's messages name paths
            log.warning("an input was refused: %s", error)
            raise refusal(
                f"This is no image, or one of more than {MAX_PIXELS // 10**6} megapixels."
            ) from error


class BodyLimit:
    """Refuses long requests before they are read; gradio limits the files in them alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a long request, or one of unknown length; let all others through."""
        headers = dict(scope.get("headers", ()))
        app = self._app
        if b"transfer-encoding" in headers:
            app = PlainTextResponse("The length is missing.", status_code=411)
        elif int(headers.get(b"content-length", 0)) > MAX_BODY:
            app = PlainTextResponse(f"More than {MAX_BODY // 10**6} MB.", status_code=413)
        await app(scope, receive, send)


def launch(page: Page, host: str, port: int, share: bool = False, **looks: Any) -> str:
    """Serve the page in threads of their own; returns its address.

    Args:
        share: make a public address through gradio's servers.
        looks: theme and style.

    Raises:
        ValueError: the port is taken, or the host is none of this machine's.
    """
    os.environ.pop("GRADIO_ALLOWED_PATHS", None)  # whatever the shell has: uploads alone are served
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice as many, wherever it opens an image ...
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ... and need not warn of fewer
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    try:
        _, address, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            allowed_paths=[],
            max_file_size=MAX_FILE,
            state_session_capacity=MAX_SESSIONS,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            footer_links=[],
            app_kwargs={"middleware": [Middleware(BodyLimit)]},
            **looks,
        )
    except OSError as error:
        raise ValueError(
            f"cannot serve on port {port} of {host}: another program has the port, or the address is none of this "
            "machine's; choose others with --port and --host"
        ) from error
    return public or address


def read_upload(path: str | None) -> Image.Image | None:
    """An upload that gradio has let through, in RGB; ValueError, without its path, where it cannot be decoded."""
    return None if path is None else decode_image(io.BytesIO(Path(path).read_bytes()), "(the upload)")


@contextmanager
def plain_errors() -> Generator[None]:
    """A ValueError says what to do; of any other error, which may name paths, only the log has the message."""
    try:
        yield
    except ValueError as error:
        raise refusal(str(error)) from error
    except Exception as error:
        log.exception("a question failed")
        raise refusal("The model failed on this question; the server's log says why.") from error


def refusal(message: str) -> gr.Error:
    """An error whose message the visitor sees."""
    return gr.Error(message, print_exception=False)
