"""The stand-in for MM-Vet's judge."""

import json
import urllib.error
import urllib.request

import pytest

from dyvte.tiny.judge import grade, grade_message, serve


@pytest.mark.parametrize(
    ("truth", "prediction", "wanted"),
    [
        ("3", "3", 1.0),
        ("Red", " red.", 1.0),
        ("3", "33", 0.0),
        ("3", "", 0.0),
        ("3 <OR> three", "three", 1.0),
        ("3 <OR> three", "four", 0.0),
        ("red <AND> 3", "top left red 3", 1.0),
        ("red <AND> 3", "red 33", 0.0),
    ],
)
def test_grades(truth, prediction, wanted):
    assert grade(truth, prediction) == wanted
    assert grade_message(f"head\nWhat? | {truth} | {prediction} | ") == wanted


def test_endpoint():
    def post(address, text):
        body = json.dumps({"model": "exact-match", "messages": [{"role": "user", "content": text}]}).encode()
        request = urllib.request.Request(f"{address}/chat/completions", body)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read())["choices"][0]["message"]["content"]

    with serve() as address:
        assert (
            post(address, "How many? | 4 | 4 | ") == "1.0" and post(address, "How many? | 4 | 5 | ") == "0.0"
        )
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(address, "nothing to grade")
