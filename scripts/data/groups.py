"""Groups of rows that say nearly the same: what is measured on one of them after a fit on the others is too good."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import pairwise
from zlib import crc32

from ir3de.scripts.data.columns import Row

_ALIKE = 0.6  # of the pairs of words that either text has (Jaccard)
_PAIRS = 32  # of a text that are compared: those of the smallest hashes, the same of the same text (Broder 1997)
_KEPT = 8  # texts of each pair of words that are remembered: what many texts have tells little
_MOST = 50_000  # rows of a domain that are compared; of those beyond, only equal ones are found
_NUMBER, _WORD = re.compile(r"\d+"), re.compile(r"\w+")


class Groups:
    """
    Gives rows of a domain that are nearly equal, or templates with other numbers in them, one group.

    Args:
        rows (`int`): that were looked at.
        alike (`int`): those that joined a group of an earlier row, but for those that name their group.
    """

    def __init__(self) -> None:
        self.rows = self.alike = 0
        self._domains: dict[str, _Domain] = defaultdict(_Domain)

    def of(self, row: Row) -> int:
        """The group of a row: a number that rows of its domain share if they belong together."""
        self.rows += 1
        domain = self._domains[row.domain]
        group, known = domain.named(row.group) if row.group else domain.alike(row.text)
        self.alike += known and not row.group
        return group

    def notes(self) -> list[str]:
        """What was found, in words."""
        if not self.alike:
            return []
        return [f"{self.alike:,} of {self.rows:,} rows are nearly equal to others, and are held out with them."]


class _Domain:
    """The texts of one domain."""

    def __init__(self) -> None:
        self.number = 0
        self.by_name: dict[str, int] = {}
        self.equal: dict[int, int] = {}  # from a text's hash to its group
        self.groups: list[int] = []  # of the texts that are compared
        self.sizes: list[int] = []  # how many pairs of words of each
        self.places: dict[int, list[int]] = defaultdict(list)  # from a pair of words to texts

    def named(self, name: str) -> tuple[int, bool]:
        """The group of a name, and whether it is known."""
        known = name in self.by_name
        return self.by_name[name] if known else self.by_name.setdefault(name, self._new()), known

    def alike(self, text: str) -> tuple[int, bool]:
        """The group of a text, and whether that is one of an earlier text."""
        words = _words(text)
        key = _hash(" ".join(words))
        if key in self.equal:
            return self.equal[key], True
        pairs = _pairs(words)
        found = self._nearest(pairs)
        group = self.equal[key] = self._new() if found is None else found
        if found is None and len(self.groups) < _MOST:
            self._remember(pairs, group)
        return group, found is not None

    def _nearest(self, pairs: list[int]) -> int | None:
        """The group of a text that has most of these pairs of words."""
        shared = Counter(place for pair in pairs for place in self.places.get(pair, ()))
        for place, both in shared.most_common(1):
            if both >= _ALIKE * (len(pairs) + self.sizes[place] - both):
                return self.groups[place]
        return None

    def _remember(self, pairs: list[int], group: int) -> None:
        for pair in pairs:
            if len(self.places[pair]) < _KEPT:
                self.places[pair].append(len(self.groups))
        self.groups.append(group)
        self.sizes.append(len(pairs))

    def _new(self) -> int:
        self.number += 1
        return self.number - 1


def _words(text: str) -> list[str]:
    """Its words, without case and punctuation, every number as 0."""
    return _WORD.findall(_NUMBER.sub("0", text.casefold()))


def _pairs(words: list[str]) -> list[int]:
    """Hashes of some of its pairs of neighbouring words, or of its only word."""
    pairs = {_hash(" ".join(pair)) for pair in pairwise(words)} or {_hash(" ".join(words))}
    return sorted(pairs)[:_PAIRS]


def _hash(text: str) -> int:
    return crc32(text.encode(errors="replace"))
