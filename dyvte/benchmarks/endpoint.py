"""A client of chat-completions endpoints in OpenAI's form, with retries, and a store of the replies paid for.

Used by :mod:`dyvte.benchmarks.judge`. Errors never show address or key: text of a server that is shown or kept must
pass ``_scrub``. The key in :meth:`ReplyStore.ask` must stay as it is: another key discards all replies in existing
stores.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from dyvte.cli import extra

with extra("eval"):
    import requests
    from tenacity import (
        RetryCallState,
        retry,
        retry_if_exception_type,
        stop_after_attempt,
        wait_random_exponential,
    )

DEFAULT_URL = "https://api.openai.com/v1"
TIMEOUT = (10, 120)  # seconds to connect, and between bytes of the reply
MAX_TOKENS = 3  # of a reply, as in MM-Vet's evaluator: a grade such as 0.5 has three
ATTEMPTS = 10
LONGEST_WAIT = 300.0  # seconds; longer waits that a server asks for are cut to this
LONGEST_OWN_WAIT = 60.0  # seconds
LONGEST_DETAIL = 300  # characters of a server's message that are shown
SHORTEST_PART = 4  # characters of a key that are hidden when a server quotes them: some quote the last four


@dataclass(frozen=True)
class Reply:
    """``content``: a model's reply, None when it has no text; ``model``: the name that the server gives it."""

    model: str
    content: str | None


class TryAgain(ConnectionError):
    """An error that may pass: no connection, no reply in time, too many requests, a server error.

    ``wait``: seconds that the server asks to wait; 0 when it does not say.
    """

    def __init__(self, trouble: str, wait: float = 0.0) -> None:
        super().__init__(trouble)
        self.wait = wait


def _wait(state: RetryCallState) -> float:
    trouble = state.outcome and state.outcome.exception()
    asked = trouble.wait if isinstance(trouble, TryAgain) else 0.0
    return max(wait_random_exponential(max=LONGEST_OWN_WAIT)(state), min(asked, LONGEST_WAIT))


def _announce(state: RetryCallState) -> None:
    trouble = state.outcome and state.outcome.exception()
    tqdm.write(f"{trouble} Trying again in {state.upcoming_sleep:.0f} s.")


class Endpoint:
    """``POST <base URL>/chat/completions``. Errors hold neither the address nor 4 or more characters
    of the key in a row; replies are scrubbed of the key.

    OPENAI_BASE_URL is the address, up to and with ``/v1``; OPENAI_API_KEY is sent as bearer token, and may be missing
    for servers that need none.

    Raises:
        ValueError: neither variable is set, or the key holds characters that cannot be sent.
    """

    def __init__(self, model: str) -> None:
        base_url, self._key = (
            os.environ.get(name, "").strip() for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY")
        )
        if not base_url and not self._key:
            raise ValueError(
                "No judge: set OPENAI_API_KEY, or OPENAI_BASE_URL for a server of one's own (or both)."
            )
        if not all(character.isprintable() and ord(character) < 256 for character in self._key):
            raise ValueError(
                "OPENAI_API_KEY holds control characters or characters outside Latin-1, which no header can; "
                "set it again."
            )
        self.model = model
        self._url = f"{(base_url or DEFAULT_URL).rstrip('/')}/chat/completions"

    @retry(
        retry=retry_if_exception_type(TryAgain),
        stop=stop_after_attempt(ATTEMPTS),
        wait=_wait,
        before_sleep=_announce,
        reraise=True,
    )
    def ask(self, message: str, temperature: float) -> Reply:
        """The reply to one user message. A request that fails with :class:`TryAgain` is sent again, at most
        ``ATTEMPTS`` times, after waits with random exponential backoff, each of which is announced.

        Raises:
            ConnectionError: all attempts failed.
            ValueError: key, model or address are wrong, or the request is refused.
        """
        body = {
            "model": self.model,
            "max_tokens": MAX_TOKENS,
            "temperature": temperature,
            "messages": [{"role": "user", "content": message}],
        }
        try:
            response = requests.post(
                self._url, json=body, auth=self._authorise, timeout=TIMEOUT, allow_redirects=False
            )
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            raise TryAgain(f"The endpoint cannot be reached ({type(error).__name__}).") from None
        except (requests.RequestException, ValueError) as error:
            raise ValueError(f"OPENAI_BASE_URL is no usable address ({type(error).__name__}).") from None
        if response.status_code in (408, 409, 429) or response.status_code >= 500:
            what = "too many requests, or no quota left" if response.status_code == 429 else "server trouble"
            raise TryAgain(f"The endpoint answers {response.status_code} ({what}).", _retry_after(response))
        if response.status_code != 200:
            raise ValueError(self._refusal(response))
        try:
            content = response.json()
            text = content["choices"][0]["message"].get("content")
            model = self._scrub(str(content.get("model", self.model)))
            return Reply(model, self._scrub(text) if isinstance(text, str) else None)
        except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(
                "The endpoint's reply is no chat completion; OPENAI_BASE_URL should end as .../v1 does."
            ) from None

    def _refusal(self, response: requests.Response) -> str:
        """What a refusal means and, unless it is about the key, what the server says."""
        status = response.status_code
        if status in (401, 403):
            return f"The endpoint refuses the key (status {status}); look at OPENAI_API_KEY."
        meant = f"refuses the request (status {status}); can its model {self.model!r} chat?"
        if status == 404:
            meant = f"knows no model {self.model!r}, or is at another address; look at OPENAI_BASE_URL."
        try:
            said = str(response.json()["error"]["message"])
        except (ValueError, RecursionError, KeyError, TypeError):
            return f"The endpoint {meant}"
        said = said.replace(self._url.removesuffix("/chat/completions"), "...")
        return f"The endpoint {meant} It says: {self._scrub(said)[:LONGEST_DETAIL]}"

    def _scrub(self, text: str) -> str:
        """The text with each part of the key, of 4 characters or more, replaced by "..."."""
        size, hidden = SHORTEST_PART, set[int]()
        for start in range(len(text) - size + 1):
            if text[start : start + size] in self._key:
                hidden.update(range(start, start + size))
        runs = groupby(enumerate(text), key=lambda pair: pair[0] in hidden)
        return "".join("..." if secret else "".join(letter for _, letter in run) for secret, run in runs)

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # As `auth`, since a header alone would give way to what a .netrc file has for the host.
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _retry_after(response: requests.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0  # a date: the growing waits will do


class ReplyStore:
    """Replies by model name and request, in an SQLite file, so that no request is paid for twice. The key has no
    address: servers that serve different models under one name need a file each (``judge --store``).

    A run holds ``lock`` while it asks: of two runs at once, both could pay for the same reply.

    Raises:
        OSError: the file cannot be read or written; the message names it.
    """

    def __init__(self, path: Path, endpoint: Endpoint) -> None:
        self._path = path
        self._endpoint = endpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(path.with_name(f".{path.name}.lock"))
        self._run("CREATE TABLE IF NOT EXISTS replies (asked TEXT PRIMARY KEY, reply TEXT NOT NULL)")

    def ask(self, message: str, temperature: float, round_index: int) -> Reply:
        """The stored reply, or a new one, stored before it is returned. Each round has replies of its own."""
        request = json.dumps([self._endpoint.model, message, temperature, MAX_TOKENS, round_index])
        key = hashlib.sha256(request.encode()).hexdigest()
        if rows := self._run("SELECT reply FROM replies WHERE asked = ?", key):
            return Reply(**json.loads(rows[0][0]))
        reply = self._endpoint.ask(message, temperature)
        self._run("INSERT OR REPLACE INTO replies VALUES (?, ?)", key, json.dumps(asdict(reply)))
        return reply

    def _run(self, command: str, *values: str) -> list[tuple[str]]:
        try:
            with closing(sqlite3.connect(self._path, timeout=60)) as connection, connection:
                return connection.execute(command, values).fetchall()
        except sqlite3.Error as error:
            raise OSError(f"{self._path} cannot be used as a store of paid replies ({error}).") from None
