"""Signs that an answer was of no use, which nobody gave as a score: guesses, and off unless they are wanted."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

REGENERATED, REPEATED, TOOL_FAILED = "regenerated", "repeated", "tool_failed"
_REMEMBERED = 20_000  # conversations
_SECONDS = 600.0  # after which a question that is asked again says nothing of the answer
_ERRORS = ("error", "exception", "traceback")  # how a tool's result begins that failed


class Turns(NamedTuple):
    """
    A conversation as far as it is looked at.

    Args:
        who (`str`): names the person as well as it is known; empty where it is not, and then nothing is seen.
        said (`list[str]`): the person's messages.
        after (`Sequence[Any]`): results of tools since the last of them.
    """

    who: str
    said: list[str]
    after: Sequence[Any] = ()


class Seen(NamedTuple):
    """
    An answer.

    Args:
        request_id (`str`): of its request.
        uid (`str`): its own, of the store.
    """

    request_id: str
    uid: str


class _Last(NamedTuple):
    """The last request of a conversation, and its answer."""

    said: list[str]
    results: int
    at: float
    answer: Seen


class Watcher:
    """
    Remembers hashes of the last request of each conversation, in this process alone, and compares the next with it.

    Args:
        most (`int`): conversations; the one asked longest ago is forgotten first.
    """

    def __init__(self, most: int = _REMEMBERED) -> None:
        self._most = most
        self._last: OrderedDict[str, _Last] = OrderedDict()

    def seen(self, turns: Turns) -> tuple[str, Seen] | None:
        """What a new request says of the answer before it, as a kind of sign, and that answer."""
        last = self._last.get(_conversation(turns))
        if last is None or not turns.said:
            return None
        said = _hashes(turns.said)
        if len(turns.after) > last.results and said == last.said:
            return (TOOL_FAILED, last.answer) if failed(turns.after[-1]) else None
        if time.monotonic() - last.at > _SECONDS:
            return None
        if said == last.said and len(turns.after) == last.results:
            return REGENERATED, last.answer
        if said[:-1] == last.said and said[-1] == last.said[-1]:
            return REPEATED, last.answer
        return None

    def answered(self, turns: Turns, answer: Seen) -> None:
        """Remembers a request whose answer is on its way to the store."""
        if not turns.who or not turns.said:
            return
        name = _conversation(turns)
        self._last[name] = _Last(_hashes(turns.said), len(turns.after), time.monotonic(), answer)
        self._last.move_to_end(name)
        if len(self._last) > self._most:
            self._last.popitem(last=False)


def failed(result: Any) -> bool:
    """Whether a tool's result says that it failed: by a flag, by a field `error`, or by its first word."""
    if isinstance(result, list):
        return any(isinstance(part, dict) and part.get("is_error") is True for part in result)
    if not isinstance(result, str):
        return False
    text = result.strip()
    if text.startswith("{"):
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return False
        return isinstance(fields, dict) and bool(fields.get("error") or fields.get("is_error"))
    return text.lower().startswith(_ERRORS)


def _conversation(turns: Turns) -> str:
    first = turns.said[0] if turns.said else ""
    return hashlib.blake2b(json.dumps([turns.who, first]).encode(), digest_size=16).hexdigest()


def _hashes(said: Sequence[str]) -> list[str]:
    """The person's messages as hashes, in small letters and without the space between words."""
    plain = (" ".join(text.lower().split()) for text in said)
    return [hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).hexdigest() for text in plain]
