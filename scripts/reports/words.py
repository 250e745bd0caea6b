"""Numbers in words, and words in columns."""

from __future__ import annotations

import re
import unicodedata

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all but ends of lines and tabs


def number_of(count: int, one: str, more: str) -> str:
    """A number with what it counts, such as `1 answer was` and `1,000 answers were`."""
    return f"{count:,} {one if count == 1 else more}"


def harmless(text: str) -> str:
    """Text for a terminal or a page: what would act there, such as the start of a colour, is escaped."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


def width_of(text: str) -> int:
    """The columns of a terminal that text takes: two a wide letter, as of Chinese, and none a combining mark."""
    return sum(_width(letter) for letter in text)


def to_left(text: str, width: int) -> str:
    """Text at the left of a column of this width."""
    return text + " " * (width - width_of(text))


def to_right(text: str, width: int) -> str:
    """Text at the right of a column of this width."""
    return " " * (width - width_of(text)) + text


def _width(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
