"""Outcomes as rows: what an expert did on a prompt, read from JSON Lines or from memory, and checked."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

MEASURES = ("cost", "seconds", "tokens")  # that an outcome may have beside its score
_MANY = {"score": "scores", "cost": "costs", "seconds": "seconds", "tokens": "tokens"}  # of a row of several experts
LARGEST = 1 << 30  # of a cost, of seconds, of tokens of a single outcome
_FAR = 1 << 62  # beyond which a whole number is no float


class Outcome(NamedTuple):
    """
    What an expert did on one prompt.

    Args:
        text (`str`): the prompt.
        expert (`str`): the expert's name.
        score (`float`): 0 to 1.
        cost (`float`, *optional*): in whichever unit all of a router's outcomes use.
        seconds (`float`, *optional*): that the answer took.
        tokens (`float`, *optional*): of prompt and answer.
        domain (`str`, *optional*): of the prompt, where it is known.
        day (`str`, *optional*): on which it happened, as in 2026-11-28, of UTC.
    """

    text: str
    expert: str
    score: float
    cost: float | None = None
    seconds: float | None = None
    tokens: float | None = None
    domain: str | None = None
    day: str | None = None

    def check(self) -> None:
        """Raises ValueError unless these are a prompt, a name and numbers in range."""
        if not isinstance(self.text, str) or not self.text.strip():
            raise ValueError(f"an outcome needs the prompt's text, got {str(self.text)[:60]!r}")
        if not isinstance(self.expert, str) or not self.expert:
            raise ValueError(f"an outcome needs the name of an expert, got {self.expert!r}")
        if not _is_number(self.score) or not 0 <= self.score <= 1:
            raise ValueError(f"the score of {self.expert!r} must be a number from 0 to 1, got {self.score!r}")
        for name in MEASURES:
            value = getattr(self, name)
            if value is not None and (not _is_number(value) or not 0 <= value <= LARGEST):
                raise ValueError(f"`{name}` of {self.expert!r} must be a number from 0 to {LARGEST:,}, got {value!r}")
        if self.day is not None:
            check_day(self.day)

    @property
    def number(self) -> int:
        """A number that names the outcome, its domain left out: that is no part of what happened."""
        digest = hashlib.blake2b(self.text.encode("utf-8", "surrogatepass"), digest_size=16)
        values = [math.nan if value is None else value for value in self[2:6]]
        digest.update(struct.pack("<4d", *values) + self.expert.encode("utf-8", "surrogatepass"))
        if self.day is not None:  # the same answer on another day is another outcome
            digest.update(f"\0{self.day}".encode())
        return int.from_bytes(digest.digest(), "big")


def check_day(day: object) -> date:
    """The date that a text such as 2026-11-28 means.

    Raises:
        ValueError: it means none.
    """
    try:
        found = date.fromisoformat(day)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        found = None
    if found is None or found.isoformat() != day:
        raise ValueError(f"`day` must be a date such as 2026-11-28, got {str(day)[:60]!r}")
    return found


def latest_day() -> str:
    """The latest day that may have begun somewhere: a later one is yet to come, whatever the place."""
    return (datetime.now(UTC) + timedelta(days=1)).date().isoformat()


def _day_of(place: str, row: Mapping[str, Any]) -> str | None:
    """The day of a row, in UTC, which may also say the time: 2026-11-28T14:15:00+01:00."""
    told = row.get("day")
    if not isinstance(told, str) or len(told) <= len("2026-11-28"):
        return told
    try:
        moment = datetime.fromisoformat(told.replace("Z", "+00:00"))
    except ValueError:
        message = f"{place}: `day` must be a date such as 2026-11-28, or a time in ISO 8601, got {told[:60]!r}."
        raise ValueError(message) from None
    return (moment.astimezone(UTC) if moment.tzinfo else moment).date().isoformat()


def read_outcomes(source: Any, where: Mapping[str, str] | None = None) -> Iterator[list[Outcome]]:
    """Streams outcomes, checked, those of one row together.

    Args:
        source (`str`, `os.PathLike` or `Iterable`): JSON Lines, plain or `.gz`; or rows in memory, each an [`Outcome`]
            or a mapping. A row is one answer, `text`, `expert`, `score` and maybe `cost`, `seconds` and `tokens`; or
            those of several experts to one prompt, `text` and `scores`, and maybe `costs`, `seconds` and `tokens`, each
            a mapping of experts to numbers. `domain` may say the prompt's, and `day` when it was answered, as a date of
            UTC or a time in ISO 8601.
        where (`Mapping[str, str]`, *optional*): only rows with these values, such as `{"split": "train"}`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is malformed; file and line, or the number of the row, are named.
    """
    for _, row, outcomes in read_rows(source):
        if all(str(row.get(key)) == value for key, value in (where or {}).items()):
            yield outcomes


def read_rows(source: Any) -> Iterator[tuple[str, Mapping[str, Any], list[Outcome]]]:
    """Streams rows: where each is, the row itself, and its outcomes, as [`read_outcomes`] takes them."""
    for place, row in _rows(source):
        outcomes = [row] if isinstance(row, Outcome) else _outcomes_of(place, row)
        for outcome in outcomes:
            try:
                outcome.check()
            except ValueError as error:
                raise ValueError(f"{place}: {error}. Mend the row, or leave it out.") from error
        yield place, row._asdict() if isinstance(row, Outcome) else row, outcomes


def _outcomes_of(place: str, row: Mapping[str, Any]) -> list[Outcome]:
    """The outcomes of a row."""
    common = {"text": row.get("text"), "domain": row.get("domain"), "day": _day_of(place, row)}
    if common["domain"] is not None and not isinstance(common["domain"], str):
        raise ValueError(f"{place}: `domain` must be a name, got {common['domain']!r}. Mend the row, or leave it out.")
    if "scores" not in row:
        if row.get("score") is None:
            raise ValueError(
                f"{place}: a row needs `expert` and `score`, or `scores` of several experts; it has"
                f" {', '.join(map(repr, row)) or 'nothing'}. Mend the row, or leave it out."
            )
        values = {name: row.get(name) for name in ("score", *MEASURES)}
        return [Outcome(expert=row.get("expert"), **common, **values)]  # type: ignore[arg-type]
    columns = {name: row.get(many) or {} for name, many in _MANY.items()}
    for name, column in columns.items():
        if not isinstance(column, Mapping):
            raise ValueError(f"{place}: `{_MANY[name]}` must map experts to numbers, got {str(column)[:60]!r}.")
    scores = {expert: score for expert, score in columns["score"].items() if score is not None}
    if not scores:
        raise ValueError(f"{place}: the row has no score. Mend the row, or leave it out.")
    for name, column in columns.items():
        unknown = [expert for expert in column if expert not in columns["score"]]
        if unknown:
            raise ValueError(f"{place}: `{_MANY[name]}` names {unknown[0]!r}, which has no score there. Mend the row.")
    return [
        Outcome(expert=expert, **common, **{name: column.get(expert) for name, column in columns.items()})  # type: ignore[arg-type]
        for expert in scores
    ]


def _rows(source: Any) -> Iterator[tuple[str, Any]]:
    """Rows and where they are."""
    if isinstance(source, (str, os.PathLike)):
        yield from _json_lines(Path(source))
        return
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise TypeError(f"Outcomes are a file, or rows; got {str(source)[:60]!r}.")
    for number, row in enumerate(source):
        if not isinstance(row, (Outcome, Mapping)):
            raise ValueError(f"row {number}: expected an outcome or a mapping, got {str(row)[:60]!r}.")
        yield f"row {number}", row


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} of outcomes.")
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}, line {number}", _parsed(path, number, line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or not gzip ({error}): fetch it again.") from error


def _parsed(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON or of UTF-8
        raise ValueError(f"{path}, line {number}: not JSON in UTF-8 ({error}).") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: expected an object with text and scores, got {line[:60]!r}.")
    return row


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_FAR < value < _FAR  # nor NaN
