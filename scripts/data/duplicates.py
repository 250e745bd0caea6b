"""Texts that occur more than once: within a domain, across domains, across splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from ir3de.scripts.data.columns import Row
from ir3de.scripts.reports.words import number_of

_MOST = 2_000_000  # different texts that are remembered, some 120 bytes each
_SHOWN = 40  # characters of an example


@dataclass
class Duplicates:
    """
    Counts texts that are equal but for case and white space.

    Args:
        most (`int`): different texts that are remembered; of those beyond, nothing is said.
        rows (`int`): that were looked at.
        within (`int`): that repeat a row of their domain and split.
        across_domains (`Counter[tuple[str, str]]`): by the two domains, rows that repeat one of another domain.
        across_splits (`Counter[tuple[str, str]]`): by the two splits, rows that repeat one of another split.
        examples (`dict[tuple[str, str], str]`): the first text of each two domains.
    """

    most: int = _MOST
    rows: int = 0
    within: int = 0
    across_domains: Counter[tuple[str, str]] = field(default_factory=Counter)
    across_splits: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    _seen: dict[bytes, tuple[str, str]] = field(default_factory=dict, repr=False)
    _again: dict[bytes, set[tuple[str, str]]] = field(default_factory=dict, repr=False)

    def watch(self, rows: Iterable[Row], split: str = "") -> Iterator[Row]:
        """Hands rows on, and counts.

        Args:
            rows (`Iterable[Row]`): of the data.
            split (`str`, *optional*): what they are of, where they do not say so themselves.
        """
        for row in rows:
            self.add(row, split)
            yield row

    def add(self, row: Row, split: str = "") -> None:
        """Counts a row; arguments as for `watch`."""
        self.rows += 1
        key = digest(row.text)
        place = (row.domain, row.split or split)
        first = self._seen.get(key)
        if first is None:
            if len(self._seen) < self.most:
                self._seen[key] = place
            return
        places = {first, *self._again.get(key, ())}
        if place in places:
            self.within += 1
            return
        self._again.setdefault(key, set()).add(place)
        if place[0] not in {domain for domain, _ in places}:
            pair = (first[0], place[0]) if first[0] < place[0] else (place[0], first[0])
            self.across_domains[pair] += 1
            self.examples.setdefault(pair, " ".join(row.text.split())[:_SHOWN])
        if place[1] not in {of for _, of in places}:
            self.across_splits[(first[1], place[1])] += 1

    def notes(self) -> list[str]:
        """What was found, in words; nothing where there is nothing to say."""
        notes = []
        if self.within:
            notes.append(f"{self.within:,} of {self.rows:,} rows repeat another row of their domain.")
        for (one, other), number in self.across_domains.most_common(3):
            example = self.examples[one, other]
            texts = number_of(number, "text is", "texts are")
            notes.append(f"{texts} in both {one!r} and {other!r}, such as {example!r}: of which are they?")
        if more := self.across_domains.total() - sum(n for _, n in self.across_domains.most_common(3)):
            notes.append(f"{number_of(more, 'more text is', 'more texts are')} in two domains.")
        for (one, other), number in self.across_splits.most_common(3):
            texts = number_of(number, f"text of {other!r} is", f"texts of {other!r} are")
            notes.append(f"{texts} in {one!r} too: what is measured on them is too good.")
        if notes and len(self._seen) >= self.most:
            notes.append(f"Only the first {self.most:,} different texts were compared.")
        return notes


def overlap(train: Iterable[Row], test: Iterable[Row]) -> list[str]:
    """Says how many texts to measure on are among those to fit on; nothing where none is.

    Args:
        train (`Iterable[Row]`): to fit on.
        test (`Iterable[Row]`): to measure on.
    """
    known = {digest(row.text) for row in train}
    number = sum(digest(row.text) in known for row in test)
    texts = number_of(number, "text to measure on is", "texts to measure on are")
    return [f"{texts} in the training data too: the figures are too good."] if number else []


def digest(text: str) -> bytes:
    """Eight bytes that are equal for texts which are equal but for case and white space."""
    return blake2b(" ".join(text.casefold().split()).encode(errors="replace"), digest_size=8).digest()
