"""A client of chat-completions endpoints in OpenAI's form, with retries; its errors never show address or key.

Used by :mod:`dyvte.benchmarks.judge` through :mod:`dyvte.benchmarks.reply_store`. Text of a server that is shown or
kept must pass ``_scrub``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from dyvte.cli import extra

with extra("eval"):
    import requests
    from tenacity import (
        RetryCallState,
        Retrying,
        retry_if_exception_type,
        stop_after_attempt,
        wait_random_exponential,
    )

DEFAULT_URL = "https://api.openai.com/v1"
TIMEOUT = (10, 120)  # seconds to connect, and between bytes of the reply
ATTEMPTS = 10
LONGEST_WAIT = (
    300.0  # seconds; longer waits that a server asks for are cut to this, waits of our own end at 60
)
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


class Endpoint:
    """``POST <base URL>/chat/completions``. Errors hold neither the address nor 4 or more characters
    of the key in a row; replies are scrubbed of the key.

    OPENAI_BASE_URL is the address, up to and with ``/v1``; OPENAI_API_KEY is sent as bearer token, and may be missing
    for servers that need none. A request that fails with :class:`TryAgain` is sent again, at most ``ATTEMPTS`` times,
    after waits with random exponential backoff.

    Args:
        model: which model is asked.
        say: called with a message before each wait.

    Raises:
        ValueError: neither variable is set, or the key holds characters that cannot be sent.
    """

    def __init__(self, model: str, say: Callable[[str], None]) -> None:
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
        self._say = say
        self._retrying = Retrying(
            retry=retry_if_exception_type(TryAgain),
            stop=stop_after_attempt(ATTEMPTS),
            wait=_wait,
            before_sleep=self._announce,
            reraise=True,
        )

    def ask(self, message: str, temperature: float, max_tokens: int) -> Reply:
        """The reply to one user message.

        Raises:
            ConnectionError: all attempts failed.
            ValueError: key, model or address are wrong, or the request is refused.
        """
        body = {
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "messages": [{"role": "user", "content": message}],
        }
        return self._retrying(self._post, body)

    def _post(self, body: dict[str, Any]) -> Reply:
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
            raise ValueError(f"{_refusal(response.status_code, self.model)}{self._detail(response)}")
        try:
            content = response.json()
            text = content["choices"][0]["message"].get("content")
            model = self._scrub(str(content.get("model", self.model)))
            return Reply(model, self._scrub(text) if isinstance(text, str) else None)
        except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(
                "The endpoint's reply is no chat completion; OPENAI_BASE_URL should end as .../v1 does."
            ) from None

    def _detail(self, response: requests.Response) -> str:
        """What the server says about a refusal."""
        if response.status_code in (401, 403):
            return ""
        try:
            text = str(response.json()["error"]["message"])
        except (ValueError, RecursionError, KeyError, TypeError):
            return ""
        text = text.replace(self._url.removesuffix("/chat/completions"), "...")
        return f" It says: {self._scrub(text)[:LONGEST_DETAIL]}"

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

    def _announce(self, state: RetryCallState) -> None:
        trouble = state.outcome.exception() if state.outcome else None
        self._say(f"{trouble} Trying again in {state.upcoming_sleep:.0f} s.")


def _wait(state: RetryCallState) -> float:
    grown = wait_random_exponential(max=60.0)(state)
    trouble = state.outcome.exception() if state.outcome else None
    return max(grown, min(getattr(trouble, "wait", 0.0), LONGEST_WAIT))


def _retry_after(response: requests.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0  # a date: the growing waits will do


def _refusal(status: int, model: str) -> str:
    if status in (401, 403):
        return f"The endpoint refuses the key (status {status}); look at OPENAI_API_KEY."
    if status == 404:
        return f"The endpoint knows no model {model!r}, or is at another address; look at OPENAI_BASE_URL."
    return f"The endpoint refuses the request (status {status}); can its model {model!r} chat?"
