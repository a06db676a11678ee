"""Servers in this process, and pictures as clients send them."""

from __future__ import annotations

import base64
import io
import shlex
import threading
import time
from contextlib import contextmanager

import pytest
from openai import OpenAI
from PIL import Image

from llava.serve import api
from llava.serve.listen import listen

TINY = "--model-path playground/tiny/model --gates playground/tiny/gates --served-model-name served"


@contextmanager
def serving(flags: str):
    """A client of a server that runs in a thread."""
    args = api.build_parser().parse_args(shlex.split(f"--device cpu --port 0 {flags}"))
    with listen("127.0.0.1", 0) as listener:
        server = api.make_server(args)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        try:
            with OpenAI(base_url=address, api_key="none", max_retries=0, timeout=300) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def tiny():
    """Tiny-LLaVA with its gates."""
    with serving(f"{TINY} --batch-size 32 --batch-wait-ms 50 --max-new-tokens 16") as client:
        yield client


@pytest.fixture(scope="session")
def random(checkpoint):
    """A random model, whose answers are long, in a template with a system message."""
    flags = "--served-model-name served --max-requests 4 --max-images 2 --max-megapixels 4 --max-held-megapixels 6"
    with serving(f"--model-path {checkpoint} {flags}") as client:
        yield client


def data_url(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_part(image: Image.Image) -> dict:
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def user(text: str, *images: Image.Image) -> dict:
    return {"role": "user", "content": [*map(image_part, images), {"type": "text", "text": text}]}


def eventually(condition, seconds: float = 60.0) -> None:
    """Wait for a condition; fail where it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
