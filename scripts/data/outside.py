"""Prompts of none of the domains, which must not be among the training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from ir3de.scripts.data.columns import Row
from ir3de.scripts.data.duplicates import digest
from ir3de.scripts.data.rows import counted
from ir3de.scripts.reports.words import number_of


class Outside:
    """
    Prompts that no domain should claim.

    Args:
        rows (`Sequence[Row]`): as they were given; their domain is what they say of it, or empty.
    """

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self._rows = {digest(row.text): row for row in rows}
        self._given, self._different = len(rows), len(self._rows)

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Hands training rows on, and leaves out what is among them."""
        for row in rows:
            if self._rows:
                self._rows.pop(digest(row.text), None)
            yield row

    def check(self, domains: Iterable[str]) -> None:
        """Raises ValueError where rows are labelled with these domains, or all of them were training rows."""
        if self._given and not self._rows:
            raise ValueError("All texts of --outside are among the training rows: give prompts of none of the domains.")
        check_labels(self._rows.values(), domains)

    def __bool__(self) -> bool:
        """Whether any were given."""
        return bool(self._given)

    @property
    def texts(self) -> list[str]:
        """Those that no row was equal to so far, each once."""
        return [row.text for row in self._rows.values()]

    def notes(self) -> list[str]:
        """What a person should know, in words."""
        notes = []
        if repeated := self._given - self._different:
            notes.append(f"{repeated:,} of {self._given:,} texts of --outside repeat another one: each counts once.")
        if met := self._different - len(self._rows):
            texts = number_of(met, "text of --outside is", "texts of --outside are")
            notes.append(f"{texts} among the training rows, and left out of it.")
        return notes


def check_labels(rows: Iterable[Row], domains: Iterable[str]) -> None:
    """Raises ValueError where prompts of none of the domains are labelled with one.

    Args:
        rows (`Iterable[Row]`): the prompts; their domain is what they say of it, or empty.
        domains (`Iterable[str]`): of the router.
    """
    known = set(domains)
    labels = Counter(row.domain for row in rows if row.domain in known)
    if labels:
        raise ValueError(
            f"--outside has rows that are labelled with the router's own domains: {counted(labels)}. It takes prompts"
            " of none of them. Labelled prompts to measure on go into --validation of `ir3de fit`, or --data of `ir3de"
            " evaluate`."
        )
