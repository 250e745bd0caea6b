"""Prompts of none of the domains, which must not be among the training rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ir3de.scripts.data.columns import Row
from ir3de.scripts.data.duplicates import digest


class Outside:
    """
    Prompts that no domain should claim.

    Args:
        texts (`Sequence[str]`): as they were given.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._texts = {digest(text): text for text in texts}
        self._given = len(self._texts)

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Hands training rows on, and leaves out what is among them."""
        for row in rows:
            if self._texts:
                self._texts.pop(digest(row.text), None)
            yield row

    @property
    def texts(self) -> list[str]:
        """Those that no row was equal to so far, each once.

        Raises:
            ValueError: there is none left.
        """
        if self._given and not self._texts:
            raise ValueError("All texts of --outside are among the training rows: give prompts of none of the domains.")
        return list(self._texts.values())

    def notes(self) -> list[str]:
        """What a person should know, in words."""
        met = self._given - len(self._texts)
        return [f"{met:,} texts of --outside are among the training rows, and are left out of it."] if met else []
