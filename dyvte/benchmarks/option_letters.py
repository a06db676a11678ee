"""The option that a free-form reply to a multiple-choice question means, by two versions of VLMEvalKit's rules.

Scoring variants of :mod:`dyvte.benchmarks.mmbench`. Each function copies one published version, quirks included: a
new rule of VLMEvalKit is a new function, not a change of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NO_OPTION = "Z"
"""The letter of a reply that declines to choose."""

# VLMEvalKit's own texts, letter for letter.
_FAILED_CALL = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_LAST_WORDS = 4


def letter_2024(reply: str, options: Mapping[str, Any]) -> str | None:
    """The letter that VLMEvalKit inferred until August 2025 (``can_infer`` in vlmeval/utils/matching_util.py).

    The one option letter that stands in the reply as a word of its own; else the one of the ``options`` (text by
    letter) whose text the reply contains, in lower case. "Z" for a refusal; None where no letter, or more than one,
    can be read.
    """
    declined = _declined(reply)
    if declined is not None:
        return declined or _by_text(reply, options)
    words = _words(reply)
    named = [letter for letter in options if letter in words]
    if len(named) == 1:
        return named[0]
    if not named and NO_OPTION in words:
        return NO_OPTION
    return _by_text(reply, options)


def letter_today(reply: str, options: Mapping[str, Any]) -> str | None:
    """The letter that VLMEvalKit infers since June 2026 (commit a67ace50), its ``exact_matching`` judge.

    Unlike ``letter_2024``, a letter counts only where it first stands among the last four words; where none does, a
    letter after "answer is" counts, in either case and even as the start of a word ("answer is a dog" means A);
    and a reply longer than twice all options together is not compared with their texts.
    """
    declined = _declined(reply)
    if declined:
        return declined
    if declined is None:
        words = _words(reply)
        named = [letter for letter in options if letter in words]
        if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST_WORDS:
            return named[0]
        if not named and NO_OPTION in words:
            return NO_OPTION
        stated = _ANSWER_IS.search(reply)
        if stated and stated.group(1).upper() in options:
            return stated.group(1).upper()
    if len(reply.lower()) > 2 * sum(len(str(text)) for text in options.values()):
        return None
    return _by_text(reply, options)


def _declined(reply: str) -> str | None:
    """ "Z" for a refusal, empty for a failed call (its letters do not count), None for any other reply."""
    if _FAILED_CALL in reply:
        return ""
    return NO_OPTION if any(refusal in reply for refusal in _REFUSALS) else None


def _words(reply: str) -> list[str]:
    return reply.translate(_SEPARATORS).split()


def _by_text(reply: str, options: Mapping[str, Any]) -> str | None:
    reply = reply.lower()
    found = [letter for letter, text in options.items() if str(text).lower() in reply]
    return found[0] if len(found) == 1 else None
