"""Who answered which conversation, so that it stays with one expert: known to one process, or to all workers."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_REMEMBERED = 50_000
_WAIT = 0.2  # seconds for another process that writes; on average that takes microseconds
_FORGET_EVERY = 1_000  # what is remembered


class Conversations(Protocol):
    """Who answered which conversation of an agent, and who made which response."""

    def expert(self, conversation: str) -> str | None:
        """Who answered it last, if that is known."""

    def remember(self, conversation: str, expert: str) -> None:
        """Notes who answered it."""


def conversations(shared: Path | None = None) -> Conversations:
    """What is known of conversations.

    Args:
        shared (`Path`, *optional*): a file in which worker processes remember together.
    """
    return Own() if shared is None else Shared(shared)


def prepare_shared(path: Path) -> None:
    """Makes the file of [`Shared`] before worker processes do so at the same time, and lock each other out.

    Args:
        path (`Path`): of the file.
    """
    Shared(path).close()


class Own:
    """What one process knows; the conversation asked longest ago is forgotten first."""

    def __init__(self, most: int = _REMEMBERED) -> None:
        self._most = most
        self._experts: OrderedDict[str, str] = OrderedDict()

    def expert(self, conversation: str) -> str | None:
        """Who answered it last, if that is known."""
        if conversation in self._experts:
            self._experts.move_to_end(conversation)
        return self._experts.get(conversation)

    def remember(self, conversation: str, expert: str) -> None:
        """Notes who answered it."""
        self._experts[conversation] = expert
        self._experts.move_to_end(conversation)
        if len(self._experts) > self._most:
            self._experts.popitem(last=False)


class Shared:
    """
    What worker processes know together, in a file of SQLite; the conversation answered longest ago is forgotten first.
    A request is answered as well where the file cannot be read or written just then.

    Args:
        path (`Path`): of the file, which is made where it is not there.
        most (`int`): conversations, or some more.
    """

    def __init__(self, path: Path, most: int = _REMEMBERED) -> None:
        self._most = most
        self._remembered = 0
        self._file = sqlite3.connect(path, _WAIT, isolation_level=None, check_same_thread=False)
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = OFF")  # it lives no longer than the server
        self._file.execute(
            "CREATE TABLE IF NOT EXISTS experts"
            " (number INTEGER PRIMARY KEY AUTOINCREMENT, conversation BLOB UNIQUE NOT NULL, expert TEXT NOT NULL)"
        )

    def expert(self, conversation: str) -> str | None:
        """Who answered it last, if that is known."""
        with suppress(sqlite3.Error):
            asked = self._file.execute("SELECT expert FROM experts WHERE conversation = ?", (_digest(conversation),))
            row = asked.fetchone()
            return None if row is None else str(row[0])
        return None

    def remember(self, conversation: str, expert: str) -> None:
        """Notes who answered it."""
        with suppress(sqlite3.Error):
            made = self._file.execute(
                "INSERT OR REPLACE INTO experts (conversation, expert) VALUES (?, ?)", (_digest(conversation), expert)
            )
            self._remembered += 1
            if self._remembered % _FORGET_EVERY == 0:
                self._file.execute("DELETE FROM experts WHERE number <= ?", ((made.lastrowid or 0) - self._most,))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _digest(conversation: str) -> bytes:
    """Bytes that stand for a conversation, whose name may be of any length and hold half a character."""
    return hashlib.sha256(conversation.encode("utf-8", "surrogatepass")).digest()
