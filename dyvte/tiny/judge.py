"""A stand-in for MM-Vet's judge: an OpenAI-compatible endpoint on this machine that compares words.

It lets Tiny-LLaVA's open answers go the whole way of MM-Vet without paying anyone. An answer earns 1 when it has all
parts of the ground truth ("<AND>"), or one of them ("<OR>"), else 0; these are no GPT-4 grades.

Called by :mod:`dyvte.reproduce.work`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def grade(truth: str, prediction: str) -> float:
    """1 when the prediction is right, else 0; case, periods and blanks do not matter."""
    said = _plain(prediction)
    if "<OR>" in truth:
        return float(any(_plain(part) == said for part in truth.split("<OR>")))
    if "<AND>" in truth:
        return float(all(f" {_plain(part)} " in f" {said} " for part in truth.split("<AND>")))
    return float(_plain(truth) == said)


def grade_message(message: str) -> float:
    """Grade the last row of a judge's table, "question | ground truth | prediction | ".

    Raises:
        ValueError: the message does not end in such a row.
    """
    cells = message.rstrip().rstrip("|").split("\n")[-1].split(" | ")
    if len(cells) < 3:
        raise ValueError("the message does not end in 'question | ground truth | prediction | '")
    return grade(cells[-2], cells[-1])


class Handler(BaseHTTPRequestHandler):
    """Answers POST /chat/completions."""

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            message = {"role": "assistant", "content": str(grade_message(content["messages"][-1]["content"]))}
            status, reply = 200, {"model": content.get("model"), "choices": [{"message": message}]}
        except ValueError as error:
            status, reply = 400, {"error": {"message": str(error)}}
        body = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


def _plain(text: str) -> str:
    return " ".join(text.lower().replace(".", " ").split())


@contextmanager
def serve() -> Iterator[str]:
    """The endpoint, in a thread of this process, for as long as the block runs; its base URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
