"""A request's JSON as it came: read for a few fields, and sent on with nothing else changed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

from .errors import GatewayError, short

_SPACE = re.compile(r"[ \t\r\n]*")
_COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_COMMA_OR_END = re.compile(r"[ \t\r\n]*(?:,[ \t\r\n]*|(?=[\]}]))")  # the end itself is left


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"The number {digits[:40]} is beyond what a float holds.")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON.")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)


class _Member(NamedTuple):
    """Where a field of the object is in its text."""

    start: int
    value: int
    end: int


class Body:
    """
    A JSON object together with the text that it was read from.

    Args:
        data (`bytes`): the body of a request.

    Raises:
        GatewayError: it is not a JSON object in UTF-8, names a field twice, or holds a number that no float holds.
    """

    def __init__(self, data: bytes) -> None:
        self.fields: dict[str, Any] = {}
        self._members: dict[str, _Member] = {}
        try:
            self._text = data.decode()
            self._read()
        except GatewayError:
            raise
        except RecursionError:
            raise _invalid("it is nested too deeply") from None
        except UnicodeDecodeError as error:
            raise _invalid(f"it is not UTF-8 at byte {error.start}") from None
        except ValueError as error:
            too_long = "int_max_str_digits" in str(error)  # Python's own limit, and its advice
            raise _invalid("a whole number has too many digits" if too_long else str(error)[:200].rstrip(".")) from None

    def _read(self) -> None:
        """Walks through the object's own members; what is inside of them is left to the standard library."""
        text = self._text
        place = self._after_space(0)
        if text[place : place + 1] != "{":
            value, _ = _DECODER.raw_decode(text, place)
            raise GatewayError(400, "invalid_json", f"The body must be a JSON object, got {short(value)}.")
        place = self._after_space(place + 1)
        closed = text.startswith("}", place)
        while not closed:
            start = place
            key, place = _DECODER.raw_decode(text, place)
            if not isinstance(key, str):
                raise ValueError(f"a field has no name in quotes at character {start}")
            if key in self.fields:
                raise ValueError(f"the field {short(key)} is there twice")
            value = self._expect(_COLON, place)
            self.fields[key], end = _DECODER.raw_decode(text, value)
            self._members[key] = _Member(start, value, end)
            place = self._expect(_COMMA_OR_END, end)
            closed = text.startswith("}", place)
            if closed and "," in text[end:place]:
                raise ValueError(f"a field is expected at character {place}")
        if self._after_space(place + 1) != len(text):
            raise ValueError(f"more follows the object at character {place + 1}")

    def _after_space(self, place: int) -> int:
        found = _SPACE.match(self._text, place)
        return found.end() if found else place

    def _expect(self, sign: re.Pattern[str], place: int) -> int:
        """The place after a sign and the space around it."""
        found = sign.match(self._text, place)
        if found is None:
            expected = "':'" if sign is _COLON else "','"
            raise ValueError(f"{expected} is expected at character {self._after_space(place)}")
        return found.end()

    def raw(self, key: str) -> str:
        """The text of a field's value, as it came; of a field that is missing `null`."""
        member = self._members.get(key)
        return "null" if member is None else self._text[member.value : member.end]

    def with_changes(self, changes: dict[str, str | None]) -> bytes:
        """The object with some fields changed; every other one keeps the text that it came with.

        Args:
            changes (`dict[str, str | None]`): JSON text for a field's value, or None to take the field out.
        """
        parts = []
        for key, member in self._members.items():
            if key not in changes:
                parts.append(self._text[member.start : member.end])
            elif (value := changes[key]) is not None:
                parts.append(self._text[member.start : member.value] + value)
        for key, value in changes.items():
            if key not in self._members and value is not None:
                parts.append(f"{json.dumps(key)}:{value}")
        return f"{{{','.join(parts)}}}".encode()


def elements(text: str) -> list[str]:
    """The texts of the elements of a JSON list, as they came.

    Args:
        text (`str`): of the list, which was read before.
    """
    texts: list[str] = []
    place = len(text) - len(text[1:].lstrip(" \t\r\n"))
    while not text.startswith("]", place):
        _, end = _DECODER.raw_decode(text, place)
        texts.append(text[place:end])
        found = _COMMA_OR_END.match(text, end)
        assert found is not None
        place = found.end()
    return texts


def joined(texts: Iterable[str]) -> str:
    """The text of a JSON list of such elements."""
    return f"[{','.join(texts)}]"


def _invalid(why: str) -> GatewayError:
    return GatewayError(400, "invalid_json", f"The body is not the JSON that is expected: {why}.")
