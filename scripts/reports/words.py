"""Numbers in words."""

from __future__ import annotations


def number_of(count: int, one: str, more: str) -> str:
    """A number with what it counts, such as `1 answer was` and `1,000 answers were`."""
    return f"{count:,} {one if count == 1 else more}"
