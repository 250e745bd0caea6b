"""Who may use the gateway, and how much: keys, of which only hashes are kept, each with limits of its own."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import GatewayError
from .tally import Tally

_HASH = re.compile(r"[0-9a-f]{64}")


class Key(NamedTuple):
    """
    A key, as a line of the keys file has it.

    Args:
        name (`str`): whose it is, for log and metrics.
        sha256 (`str`): of the key, in hexadecimal digits.
        requests_per_minute (`int`, *optional*): that it may send to this server.
        tokens_per_minute (`int`, *optional*): of prompts and answers, as the experts count them, or as estimated.
        admin (`bool`): whether it may take a router back, and score or remove the answers of all.
    """

    name: str
    sha256: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    admin: bool = False


def new_key(name: str) -> tuple[str, str]:
    """A new key, and the line of the keys file that lets it in."""
    key = f"ir3de-{secrets.token_urlsafe(32)}"
    return key, json.dumps({"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()})


def read_keys(text: str, where: str) -> list[Key]:
    """Reads keys.

    Args:
        text (`str`): a JSON object a line, with the fields of [`Key`].
        where (`str`): the text is from, for messages.

    Raises:
        ValueError: a line is malformed; the message names it, and not what it holds. Or there is no key at all: who
            names keys means that not everybody may come.
    """
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                keys.append(_key(json.loads(line)))
            except ValueError as error:
                why = "it is not JSON" if isinstance(error, json.JSONDecodeError) else str(error)
                raise ValueError(f"{where}, line {number}: {why}.") from None
    if not keys:
        raise ValueError(
            f"{where} holds no key, and without keys everybody may come. Add one with `ir3de serve --new-key NAME`, or"
            " leave out the option or the variable that names it, to let everybody in."
        )
    names = [key.name for key in keys]
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: two keys have one name; give each its own.")
    return keys


def _key(row: Any) -> Key:
    if not isinstance(row, dict) or not row.keys() <= set(Key._fields):
        raise ValueError(f"a key is an object with {', '.join(Key._fields)}")
    if not isinstance(row.get("name"), str) or not row["name"]:
        raise ValueError("`name` must be a text")
    if not isinstance(row.get("sha256"), str) or not _HASH.fullmatch(row["sha256"]):
        raise ValueError("`sha256` must be 64 hexadecimal digits: the hash of the key, never the key itself")
    for field in ("requests_per_minute", "tokens_per_minute"):
        value = row.get(field)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"`{field}` must be a whole number of at least 1")
    if not isinstance(row.get("admin", False), bool):
        raise ValueError("`admin` must be true or false")
    return Key(**row)


class _Allowance(NamedTuple):
    """What may be spent a minute; it grows back evenly, up to a minute's worth.

    Args:
        kind (`str`): of what.
        a_minute (`int`): how much of it.
        place (`int`): of two numbers in a tally: what is spent and has not grown back, and when that was so.
    """

    kind: str
    a_minute: int
    place: int

    def wait(self, numbers: memoryview[float], now: float) -> float:
        """Seconds until something is left; 0 where it is."""
        spent, at = numbers[self.place], numbers[self.place + 1]
        spent = max(0.0, spent - max(0.0, now - at) * self.a_minute / 60)
        numbers[self.place], numbers[self.place + 1] = spent, now
        left = self.a_minute - spent
        return 0.0 if left >= 1 else (1 - left) * 60 / self.a_minute

    def spend(self, numbers: memoryview[float], amount: int) -> None:
        """Takes from what is left, perhaps more than there is."""
        numbers[self.place] += amount


class Keys:
    """
    Lets requests in.

    Args:
        keys (`Sequence[Key]`): who may come; everybody where there are none.
        clock (`Callable`): gives the time in seconds; of all processes that share a file the same.
        shared (`Path`, *optional*): a file in which worker processes count together.
    """

    def __init__(
        self, keys: Sequence[Key] = (), clock: Callable[[], float] = time.monotonic, shared: Path | None = None
    ) -> None:
        self._keys = list(keys)
        self._clock = clock
        limits = [
            (key.name, kind, limit)
            for key in keys
            for kind, limit in (("requests", key.requests_per_minute), ("tokens", key.tokens_per_minute))
            if limit
        ]
        self._allowances: dict[str, list[_Allowance]] = {}
        for index, (name, kind, limit) in enumerate(limits):
            self._allowances.setdefault(name, []).append(_Allowance(kind, limit, 2 * index))
        self._tally = Tally(2 * len(limits), shared)

    def admit(self, headers: Mapping[str, str]) -> str:
        """The name of who sends a request; empty where everybody may.

        Args:
            headers (`Mapping[str, str]`): of the request, which has its key as a bearer's token or as `x-api-key`.

        Raises:
            GatewayError: the key is none, or has nothing left to spend.
        """
        if not self._keys:
            return ""
        key = self._find(headers)
        allowances = self._allowances.get(key.name)
        if allowances:
            with self._tally as numbers:
                self._spend_one(allowances, numbers)
        return key.name

    def _spend_one(self, allowances: list[_Allowance], numbers: memoryview[float]) -> None:
        """Counts a request, or raises where something is spent."""
        now = self._clock()
        for allowance in allowances:
            wait = allowance.wait(numbers, now)
            if wait > 0:
                message = f"This key has spent its {allowance.kind} of the minute: wait for {wait:.0f} s."
                raise GatewayError(429, "rate_limit_exceeded", message, retry_after=max(1.0, wait))
        for allowance in allowances:
            if allowance.kind == "requests":
                allowance.spend(numbers, 1)

    def spent(self, name: str, tokens: int) -> None:
        """Notes the tokens that a request took."""
        for allowance in self._allowances.get(name, ()):
            if allowance.kind == "tokens":
                with self._tally as numbers:
                    allowance.spend(numbers, tokens)

    def check_admin(self, headers: Mapping[str, str]) -> str:
        """The name of who sends a request that only some may send.

        Raises:
            GatewayError: the key is none, or not an admin's, as where there are no keys.
        """
        if not self._keys:
            message = (
                "This needs the key of an admin, and this gateway has no keys. Whoever runs it makes one with `ir3de"
                ' serve --new-key NAME`, adds `"admin": true` to its line in a file, and serves with `--keys FILE`.'
            )
            raise GatewayError(403, "forbidden", message)
        key = self._find(headers)
        if not key.admin:
            raise GatewayError(403, "forbidden", "This needs the key of an admin.")
        return key.name

    def hash_of(self, name: str) -> str:
        """The hash of a key, by its name; empty where there is none of that name."""
        return next((key.sha256 for key in self._keys if key.name == name), "")

    def is_admin(self, name: str) -> bool:
        """Whether a key is an admin's."""
        return any(key.admin for key in self._keys if key.name == name)

    def _find(self, headers: Mapping[str, str]) -> Key:
        """The key of a request, in a time that does not tell which keys there are."""
        bearer = headers.get("authorization", "")
        given = bearer[7:] if bearer[:7].lower() == "bearer " else headers.get("x-api-key", "")
        digest = hashlib.sha256(given.encode()).hexdigest()
        matches = [key for key in self._keys if hmac.compare_digest(digest, key.sha256)]
        if not matches:
            raise GatewayError(
                401, "invalid_api_key", "A valid API key is missing: send it as `Authorization: Bearer`."
            )
        return matches[0]
