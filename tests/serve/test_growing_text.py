"""Text piece by piece is the text decoded at once, cut at stops."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from llava.serve.growing_text import GrowingText

TEXTS = ["the red ball, 5 is here", "  two  spaces and\n\nlines \n", "é 日本 🙂!", "", " "]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained("playground/tiny/model")


def pieces(tokenizer, text, stops=()):
    growing = GrowingText(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), stops)
    found = []
    for token in tokenizer(text, add_special_tokens=False).input_ids:
        found.append(growing.add(token))
        if growing.stopped:
            break
    return [*found, growing.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_joined(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    found = pieces(tokenizer, text)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert not any("\ufffd" in piece for piece in found)


def test_text_comes_early(tokenizer):
    found = pieces(tokenizer, "one two three four")
    assert sum(map(bool, found)) >= 4


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (["ball"], "the red"),
        (["d b"], "the re"),
        (["all, 5 is here!", ", 5"], "the red ball"),
        (["here!!"], "the red ball, 5 is here"),
        (["the"], ""),
    ],
)
def test_stops(tokenizer, stops, expected):
    assert "".join(pieces(tokenizer, TEXTS[0], stops)) == expected
