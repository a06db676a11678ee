"""A store of a judge's paid replies, so that :mod:`dyvte.benchmarks.judge` never pays for the same request twice.

The key in :meth:`ReplyStore.ask` must stay as it is: another key discards all replies in existing stores.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from dyvte.benchmarks.endpoint import Endpoint, Reply

MAX_TOKENS = 3  # of a reply, as in MM-Vet's evaluator: a grade such as 0.5 has three


class ReplyStore:
    """Replies by model name and request, in an SQLite file. The key has no address: servers that serve different
    models under one name need a file each (``judge --store``).

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
        reply = self._endpoint.ask(message, temperature, MAX_TOKENS)
        self._run("INSERT OR REPLACE INTO replies VALUES (?, ?)", key, json.dumps(asdict(reply)))
        return reply

    def _run(self, command: str, *values: str) -> list[tuple[str]]:
        try:
            with closing(sqlite3.connect(self._path, timeout=60)) as connection, connection:
                return connection.execute(command, values).fetchall()
        except sqlite3.Error as error:
            raise OSError(f"{self._path} cannot be used as a store of paid replies ({error}).") from None
