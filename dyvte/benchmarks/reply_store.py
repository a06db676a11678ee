"""Replies of a judge that have been paid for, so that the same thing is never asked twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from dyvte.benchmarks.endpoint import Endpoint, Reply

MAX_TOKENS = 3


class ReplyStore:
    """An endpoint's replies by what was asked, in a file (SQLite) in which each is whole or not at all.

    ``lock`` is for a run that asks: while another holds it, both could pay for the same reply.

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
        """The stored reply, or a new one, which is stored before anything else happens. Rounds are asked apart."""
        question = json.dumps([self._endpoint.model, message, temperature, MAX_TOKENS, round_index])
        asked = hashlib.sha256(question.encode()).hexdigest()
        if rows := self._run("SELECT reply FROM replies WHERE asked = ?", asked):
            return Reply(**json.loads(rows[0][0]))
        reply = self._endpoint.ask(message, temperature, MAX_TOKENS)
        self._run("INSERT OR REPLACE INTO replies VALUES (?, ?)", asked, json.dumps(asdict(reply)))
        return reply

    def _run(self, command: str, *values: str) -> list[tuple[str]]:
        try:
            with closing(sqlite3.connect(self._path, timeout=60)) as connection, connection:
                return connection.execute(command, values).fetchall()
        except sqlite3.Error as error:
            raise OSError(f"{self._path} cannot be used as a store of paid replies ({error}).") from None
