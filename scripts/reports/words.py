"""Numbers in words, and words in columns."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ROOM = 100  # columns of a terminal that a table takes
LONG = 24  # columns of a name that stands whole in a table
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


class Labels(NamedTuple):
    """
    What stands for names in a table.

    Args:
        rows (`list[str]`): at the head of a row: the name, or a number and as much of the name as fits.
        columns (`list[str]`): at the head of a column: the name, or that number.
        legend (`list[str]`): a line a name; none where the names stand there whole.
    """

    rows: list[str]
    columns: list[str]
    legend: list[str]

    @classmethod
    def of(cls, names: Sequence[str], numbered: bool = False) -> Labels:
        """Labels of names, which are numbered where one is too long, or where numbers are asked for."""
        if not numbered and all(width_of(name) <= LONG for name in names):
            return cls([*names], [*names], [])
        digits = len(str(len(names)))
        numbers = [f"{number:>{digits}}" for number in range(1, len(names) + 1)]
        rows = [f"{number} {shortened(name, LONG)}" for number, name in zip(numbers, names, strict=True)]
        return cls(rows, numbers, [f"{number} = {name}" for number, name in zip(numbers, names, strict=True)])


def table(head: Sequence[str], rows: Sequence[Sequence[str]], room: int | None = ROOM) -> list[str]:
    """The lines of a table for a terminal: the first column to the left, the others to the right; those for which there
    is no room follow below, each time with the first column.

    Args:
        head (`Sequence[str]`): the columns' names.
        rows (`Sequence[Sequence[str]]`): the cells of each row.
        room (`int`, *optional*): columns of a terminal; by default as many as it takes.
    """
    lines = [head, *rows]
    widths = [max(width_of(line[column]) for line in lines) for column in range(len(head))]
    shown: list[str] = []
    for columns in _blocks(widths, room):
        shown += [""] * bool(shown)
        for line in lines:
            cells = [to_right(line[column], widths[column]) for column in columns]
            shown.append("  ".join([to_left(line[0], widths[0]), *cells]))
    return shown


def _blocks(widths: Sequence[int], room: int | None) -> Iterator[list[int]]:
    """The columns after the first that stand side by side, at least one each time."""
    block: list[int] = []
    for column in range(1, len(widths)):
        wide = widths[0] + sum(widths[other] + 2 for other in [*block, column])
        if block and room is not None and wide > room:
            yield block
            block = []
        block.append(column)
    yield block


def shortened(text: str, width: int) -> str:
    """Text, or as much of it as fits into so many columns, with three dots."""
    if width_of(text) <= width:
        return text
    end = len(text)
    while width_of(text[:end]) > width - 3:
        end -= 1
    return f"{text[:end].rstrip()}..."


def _width(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
