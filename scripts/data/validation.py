"""Labelled prompts that a fit is only measured on, which must not be among the training rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ir3de.scripts.data.columns import Row
from ir3de.scripts.data.duplicates import digest
from ir3de.scripts.data.outside import Outside


class Validation:
    """
    Labelled prompts to measure on.

    Args:
        rows (`Sequence[Row]`): as they were given.
    """

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self._rows: dict[bytes, list[Row]] = {}
        for row in rows:
            self._rows.setdefault(digest(row.text), []).append(row)
        self._given = len(rows)

    def __bool__(self) -> bool:
        """Whether any were given."""
        return bool(self._given)

    @property
    def rows(self) -> list[Row]:
        """Those that no training row was equal to so far."""
        return [row for rows in self._rows.values() for row in rows]

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Hands training rows on, and leaves out what is among them."""
        for row in rows:
            if self._rows:
                self._rows.pop(digest(row.text), None)
            yield row

    def check(self, domains: Sequence[str]) -> None:
        """Raises ValueError where a domain is none of these, or all rows are training rows too."""
        unknown = sorted({row.domain for row in self.rows} - set(domains))
        if unknown:
            raise ValueError(
                f"--validation has rows of {unknown}, but the training rows are of {list(domains)}: name the domains"
                " alike. Prompts of none of them go into --outside."
            )
        if self._given and not self._rows:
            raise ValueError("All rows of --validation are among the training rows: give others.")

    def notes(self) -> list[str]:
        """What a person should know, in words."""
        met = self._given - len(self.rows)
        return [f"{met:,} rows of --validation are among the training rows, and are left out of it."] if met else []


def check_apart(rows: Iterable[Row], outside: Outside, validation: Validation) -> None:
    """Checks against training rows what is only measured on, before long work with these.

    Args:
        rows (`Iterable[Row]`): the training rows, all of them.
        outside ([`Outside`]): prompts of none of their domains; what is among the rows leaves it.
        validation ([`Validation`]): labelled prompts; likewise.

    Raises:
        ValueError: nothing is left of either, or their labels are not what they are given as.
    """
    domains = {row.domain for row in validation.watch(outside.watch(rows))}
    outside.check(domains)
    validation.check(sorted(domains))
