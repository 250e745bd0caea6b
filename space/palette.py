"""The colour and line that stand for a name all over the page: who has one keeps it, whoever joins or leaves."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from typing import NamedTuple

# A colour and a kind of line, so that colour alone says nothing.
COLOURS = (
    "#2f6fde",
    "#d9730d",
    "#1a8f5a",
    "#8b4fd8",
    "#d6336c",
    "#0c8599",
    "#8a7a00",
    "#a0522d",
    "#5c6b7a",
    "#c026d3",
    "#4d7c0f",
    "#e0a100",
)
LINES = ("solid", "dotted", "dashed", "double", "wavy")


class Look(NamedTuple):
    """
    What stands for a name.

    Args:
        colour (`int`): place in `COLOURS`.
        line (`int`): place in `LINES`.
    """

    colour: int
    line: int


class Palette:
    """
    The looks of names.

    Args:
        looks (`Mapping[str, Look]`, *optional*): of those that have one.
    """

    def __init__(self, looks: Mapping[str, Look] | None = None) -> None:
        self.looks = dict(looks or {})

    def having(self, names: Iterable[str]) -> Palette:
        """This palette with looks for further names.

        A name's own colour follows from its letters; where that is taken it gets the next one that fewest have.
        """
        looks = dict(self.looks)
        for name in sorted({*names} - looks.keys()):
            used = Counter(look.colour for look in looks.values())
            fewest = min(used[colour] for colour in range(len(COLOURS)))
            own = zlib.crc32(name.encode("utf-8", "replace"))
            colour = next(
                place % len(COLOURS) for place in range(own, own + len(COLOURS)) if used[place % len(COLOURS)] == fewest
            )
            looks[name] = Look(colour, (colour + fewest) % len(LINES))
        return Palette(looks)

    def style(self, name: str) -> str:
        """The colour and line of a name as CSS variables; grey where it has none."""
        if name not in self.looks:
            return "--c:#6b7280;--line:solid"
        look = self.looks[name]
        return f"--c:{COLOURS[look.colour]};--line:{LINES[look.line]}"

    def badge(self, name: str) -> str:
        """A name in its colour and line, as HTML."""
        return f'<span class="ir-badge" style="{self.style(name)}">{escape(name)}</span>'
