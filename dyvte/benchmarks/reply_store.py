"""Replies of a judge that have been paid for, so that the same thing is never asked twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path

from filelock import FileLock

from dyvte.benchmarks.endpoint import Reply


def asking(model: str, message: str, temperature: float, max_tokens: int, round_index: int) -> str:
    """A digest of one question to a judge. Rounds are asked anew, hence apart."""
    asked = json.dumps([model, message, temperature, max_tokens, round_index])
    return hashlib.sha256(asked.encode()).hexdigest()


class ReplyStore:
    """A file (SQLite) of replies by what was asked; each is there whole or not at all, whenever a process is killed.

    ``lock`` is for a run that asks: while another holds it, both could pay for the same reply.

    Raises:
        OSError: the file cannot be read or written; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(path.with_name(f".{path.name}.lock"))
        self._run("CREATE TABLE IF NOT EXISTS replies (asked TEXT PRIMARY KEY, reply TEXT NOT NULL)")

    def get(self, asked: str) -> Reply | None:
        rows = self._run("SELECT reply FROM replies WHERE asked = ?", asked)
        return Reply(**json.loads(rows[0][0])) if rows else None

    def put(self, asked: str, reply: Reply) -> None:
        content = json.dumps({"model": reply.model, "content": reply.content})
        self._run("INSERT OR REPLACE INTO replies VALUES (?, ?)", asked, content)

    def _run(self, command: str, *values: str) -> list[tuple[str]]:
        try:
            connection = sqlite3.connect(self._path, timeout=60)
            try:
                with connection:
                    return connection.execute(command, values).fetchall()
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise OSError(f"{self._path} cannot be used as a store of paid replies ({error}).") from None
