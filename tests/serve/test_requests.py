"""What is refused, and how: one sentence that names the field, as an error of OpenAI's."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
from PIL import Image

from tests.serve.conftest import data_url, image_part, user

ASKED = {"model": "served", "messages": [{"role": "user", "content": "What?"}], "max_tokens": 1}


def post(client, body: bytes | dict, kind: str = "application/json", path: str = "chat/completions"):
    """(status, content) of a request, whatever comes of it."""
    body = json.dumps(body).encode() if isinstance(body, dict) else body
    request = urllib.request.Request(f"{client.base_url}{path}", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def refused(client, body, status: int = 400, **more) -> dict:
    """The error object of a refused request."""
    found, content = post(client, body, **more)
    assert found == status, content
    error = content["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    message = error["message"]
    assert "\n" not in message and len(message) < 400 and "Traceback" not in message
    return error


def content_of(*parts) -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def bomb() -> str:
    """A small file of 64 million pixels."""
    return data_url(Image.new("1", (8000, 8000)))


URL = "messages[0].content[0].image_url.url"
SMALL = image_part(Image.new("RGB", (8, 8)))
CASES = {
    "no model": ({"model": None}, "model", "missing"),
    "unknown field": ({"top_k": 5}, "top_k", "no such field"),
    "several answers": ({"n": 2}, "n", "as with 1"),
    "penalty": ({"frequency_penalty": 0.5}, "frequency_penalty", "as with 0"),
    "tools": ({"tools": [{"type": "function"}]}, "tools", "as with []"),
    "json mode": ({"response_format": {"type": "json_object"}}, "response_format", "text"),
    "logprobs": ({"logprobs": True}, "logprobs", "as with False"),
    "no messages": ({"messages": []}, "messages", "at least 1"),
    "messages as text": ({"messages": "What?"}, "messages", "array"),
    "no tokens": ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    "half a token": ({"max_tokens": 1.5}, "max_tokens", "integer"),
    "tokens as text": ({"max_tokens": "7"}, "max_tokens", "integer"),
    "hot": ({"temperature": 3}, "temperature", "less than or equal to 2"),
    "nearly cold": ({"temperature": 1e-9}, "temperature", "0.01"),
    "top_p": ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
    "seed": ({"temperature": 1, "seed": 3}, "seed", "temperature 0"),
    "stop": ({"stop": ["a", ""]}, "stop", "empty"),
    "stops": ({"stop": ["a"] * 17}, "stop", "16"),
    "stop as number": ({"stop": [3]}, "stop[0]", "string"),
    "stream as text": ({"stream": "yes"}, "stream", "boolean"),
    "stream options": ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
    "role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'user'"),
    "tool calls": (
        {"messages": [{"role": "user", "content": "x", "tool_calls": []}]},
        "messages[0].tool_calls",
        "no such field",
    ),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
    "blank": ({"messages": [{"role": "user", "content": " \n"}]}, "messages[0].content", "blank"),
    "two questions": (
        {"messages": [user("a"), user("b")]},
        "messages[1].role",
        "must be 'assistant' here, not 'user'",
    ),
    "an answer first": ({"messages": [{"role": "assistant", "content": "x"}]}, "messages[0].role", "'user'"),
    "an answer last": (
        {"messages": [user("a"), {"role": "assistant", "content": "b"}]},
        "messages",
        "the last message must be the user's",
    ),
    "a late system message": (
        {"messages": [user("a"), {"role": "system", "content": "b"}]},
        "messages[1].role",
        "take turns",
    ),
    "an image in an answer": (
        {"messages": [user("a"), {"role": "assistant", "content": [SMALL]}, user("b")]},
        "messages[1].content[0].type",
        "text alone",
    ),
    "image mark": ({"messages": [user("a <image> b")]}, "messages[0].content", "leave it out"),
    "audio": (content_of({"type": "input_audio"}), "messages[0].content[0].type", "'image_url'"),
    "text part without text": (
        content_of({"type": "text"}),
        "messages[0].content[0]",
        "needs the field text",
    ),
    "part of both kinds": (
        content_of({**SMALL, "text": "a"}),
        "messages[0].content[0]",
        "no other field than image_url",
    ),
    "url as text": (
        content_of({"type": "image_url", "image_url": "x"}),
        "messages[0].content[0].image_url",
        "",
    ),
    "file": (content_of({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), URL, "data URL"),
    "path": (content_of({"type": "image_url", "image_url": {"url": "/etc/passwd"}}), URL, "data URL"),
    "address": (
        content_of({"type": "image_url", "image_url": {"url": "http://[::1]/"}}),
        URL,
        "--allow-urls",
    ),
    "not base64": (
        content_of({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%"}}),
        URL,
        "not valid base64",
    ),
    "no image": (
        content_of({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}),
        URL,
        "cannot read image",
    ),
    "three images": (
        content_of(SMALL, SMALL, SMALL),
        "messages[0].content[2].image_url.url",
        "more than 2 images",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_field_is_named(random, name):
    change, field, words = CASES[name]
    error = refused(random, {**ASKED, **change})
    assert error["param"] == field and error["message"].startswith(field) and words in error["message"]


def test_bodies_that_are_no_request(random):
    for body in (b"", b"{", b"[]", b"3", b'{"model": "\xff"}', b"[" * 100_000, b'{"model": "\\ud800"}'):
        refused(random, body)
    half = json.dumps(ASKED).replace("What?", "\\ud83d").encode()
    refused(random, half)
    assert "Content-Type" in refused(random, ASKED, 415, kind="text/plain")["message"]
    assert "more than" in refused(random, b" " * (33 << 20), 413)["message"]
    assert refused(random, {**ASKED, "model": "other"}, 404)["code"] == "model_not_found"
    assert "/v1/completions" in refused(random, ASKED, 404, path="completions")["message"]
    assert post(random, ASKED)[0] == 200


def test_what_changes_nothing_is_taken(random):
    neutral = {"n": 1, "user": "me", "seed": 4, "tools": None, "logit_bias": {}, "presence_penalty": 0.0}
    neutral |= {"response_format": {"type": "text"}, "store": False, "stop": None, "temperature": 0}
    assert post(random, {**ASKED, **neutral})[0] == 200


def test_image_bombs_are_refused(random):
    error = refused(random, {**ASKED, **content_of({"type": "image_url", "image_url": {"url": bomb()}})})
    assert error["param"] == URL and "8000x8000 pixels is too large: more than 4000000" in error["message"]
    large = {"type": "image_url", "image_url": {"url": data_url(Image.new("1", (1500, 1500)))}}
    error = refused(random, {**ASKED, **content_of(large, large)})
    assert error["param"] == "messages[0].content[1].image_url.url" and "too large" in error["message"]
