"""Fields of a request, read as what they must be. Of another kind, or too small, they are wrong; too much is what no
expert on this machine can do, and others may."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ir3de.specs_ir3de import is_number

from .errors import GatewayError, short, wrong


class Fields:
    """
    An object in a request. A field that is null is one that is not there.

    Args:
        values (`Any`): the object.
        place (`str`): where it is in the request; empty for the request itself.

    Raises:
        GatewayError: it is no object.
    """

    def __init__(self, values: Any, place: str = "") -> None:
        if not isinstance(values, dict):
            raise wrong(place, "must be an object", values)
        self.values: dict[str, Any] = values
        self.place = place

    def place_of(self, field: str) -> str:
        """Where a field is in the request."""
        return f"{self.place}.{field}" if self.place else field

    def get(self, field: str) -> Any:
        """A field of any kind."""
        return self.values.get(field)

    def wrong(self, field: str, expected: str) -> GatewayError:
        """The error of a field that holds something else than what is expected."""
        return wrong(self.place_of(field), expected, self.get(field))

    def text(self, field: str) -> str | None:
        """A field of text."""
        value = self.get(field)
        if value is None or isinstance(value, str):
            return value
        raise self.wrong(field, "must be text")

    def flag(self, field: str, default: bool = False) -> bool:
        """A field that is true or false; the default where it is not there."""
        value = self.get(field)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        raise self.wrong(field, "must be true or false")

    def number(self, field: str, least: float, most: float) -> float | None:
        """A field with a number."""
        value = self.get(field)
        if value is None:
            return None
        if not is_number(value) or value < least:
            raise self.wrong(field, f"must be a number from {least} to {most}")
        self._check_most(field, value, most)
        return float(value)

    def whole(self, field: str, least: int, most: int) -> int | None:
        """A field with a whole number."""
        value = self.get(field)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(field, f"must be a whole number from {least} to {most:,}")
        self._check_most(field, value, most)
        return value

    def _check_most(self, field: str, value: float, most: float) -> None:
        if value > most:
            raise unsupported(self.place_of(field), f"goes to {most:,}", value)

    def object(self, field: str) -> Fields | None:
        """A field with an object."""
        value = self.get(field)
        return None if value is None else Fields(value, self.place_of(field))

    def items(self, field: str) -> list[Any]:
        """A field with a list; an empty one where it is not there."""
        value = self.get(field)
        if value is not None and not isinstance(value, list):
            raise self.wrong(field, "must be a list")
        return value or []

    def objects(self, field: str) -> Iterator[Fields]:
        """A field with a list of objects."""
        for index, item in enumerate(self.items(field)):
            yield Fields(item, f"{self.place_of(field)}[{index}]")


def unsupported(param: str, what: str, value: Any) -> GatewayError:
    """The error of a field that asks for what no expert on this machine can do.

    Args:
        param (`str`): the field.
        what (`str`): that is so with these experts.
        value (`Any`): of the field.
    """
    message = f"`{param}` {what} with an expert on this machine; got {short(value)}."
    return GatewayError(400, "unsupported_value", message, param, elsewhere=True)
