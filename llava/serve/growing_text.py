"""The text of an answer while its tokens come: whole characters only, without surrounding spaces, cut at a stop.

Called by :mod:`llava.serve.batching`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class GrowingText:
    """Pieces of :meth:`add` and :meth:`finish`, joined, are the answer's text.

    Args:
        decode: token ids -> text, without special tokens.
        stops: texts that end the answer, and are not part of it.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, stops
        self._ids: list[int] = []
        # ids up to _read are decoded; those from _start on are decoded with the next one, since what a token reads as
        # depends on the one before (spaces, characters of several tokens)
        self._start = self._read = 0
        self._held = ""
        self._begun = self.stopped = False

    def add(self, token: int) -> str:
        """Take a token; returns the text that is now settled."""
        self._ids.append(token)
        new = self._undecoded()
        if not new or new.endswith("\ufffd"):  # a character of which more bytes are to come
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._settle(new)

    def finish(self) -> str:
        """The end of the text, once the last token is there."""
        if self.stopped:
            return ""
        piece = self._settle(self._undecoded()) if self._read < len(self._ids) else ""
        rest = "" if self.stopped else self._held.rstrip()
        return piece + (rest if self._begun else rest.lstrip())

    def _undecoded(self) -> str:
        before = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(before) :]

    def _settle(self, new: str) -> str:
        """What no later text can change any more; the rest, a space or the beginning of a stop, is held back."""
        text = self._held + new
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            settled = text[: min(ends)].rstrip()
        else:
            begun = max((_overlap(text, stop) for stop in self._stops), default=0)
            settled = text[: len(text) - begun].rstrip()
            self._held = text[len(settled) :]
        if not self._begun:
            settled = settled.lstrip()
            self._begun = bool(settled)
        return settled


def _overlap(text: str, stop: str) -> int:
    """Characters of the longest end of the text with which the stop begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
