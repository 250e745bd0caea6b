"""How far long work is: a bar on a terminal, and elsewhere a line on standard error now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")

EVERY = 10.0  # seconds between two lines


def progress(things: Iterable[T], doing: str, unit: str, keep: bool = True) -> Iterator[T]:
    """Yields things, and says how many have been worked on.

    Args:
        things (`Iterable`): what is worked on, one after another.
        doing (`str`): such as "Summing".
        unit (`str`): what they are, in the plural.
        keep (`bool`): whether a bar stays on the terminal when all are done.
    """
    if sys.stderr.isatty():
        yield from tqdm(things, desc=doing, unit=f" {unit}", leave=keep)
        return
    with Steps(doing, unit, len(things) if isinstance(things, Sized) else None) as steps:
        for thing in things:
            yield thing
            steps.update(1)


class Steps:
    """
    Progress of work that comes in portions, for a `with` block.

    Args:
        doing (`str`): such as "Tokenizing".
        unit (`str`): what is counted, in the plural.
        total (`int`, *optional*): how many there are, if that is known.
    """

    said = time.monotonic()  # when the last line was printed, by whichever work: many short works are long, too

    def __init__(self, doing: str, unit: str, total: int | None = None) -> None:
        self.doing, self.unit, self.total = doing, unit, total
        self.done = 0
        self.bar = tqdm(desc=doing, unit=f" {unit}", total=total) if sys.stderr.isatty() else None

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, number: int) -> None:
        """Says that so many more are done."""
        self.done += number
        if self.bar is not None:
            self.bar.update(number)
        elif time.monotonic() - Steps.said >= EVERY:
            Steps.said = time.monotonic()
            of = "" if self.total is None else f" of {self.total:,}"
            print(f"{self.doing}: {self.done:,}{of} {self.unit}", file=sys.stderr, flush=True)
