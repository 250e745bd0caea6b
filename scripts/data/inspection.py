"""A look at data before a long run: domains, lengths, scripts, duplicates, what cannot be used."""

from __future__ import annotations

import math
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from ir3de.scripts.data.columns import Row
from ir3de.scripts.data.duplicates import Duplicates, digest
from ir3de.scripts.data.rows import Report, RowSource, counted, read_rows
from ir3de.scripts.reports.words import to_left, width_of

_EXAMPLES = 2  # rows of a domain that are shown
_MOST_SINGLE = 0.5  # of the domains, with a single row, above which the columns seem to be swapped
_SHOWN = 60  # characters of them
_LETTERS = 200  # of a text whose script is looked at
_NEAR_ROWS = 20_000  # that are compared for near-duplicates
_NEAR = 0.8  # of the runs of words that either text has
_RUN = 3  # words
_PERMUTATIONS = 64


@dataclass
class Domain:
    """
    What one domain's rows are like.

    Args:
        rows (`int`): how many.
        lengths (`Counter[int]`): of texts in characters.
        scripts (`Counter[str]`): that most letters of a text are of, such as LATIN.
        examples (`list[str]`): the first texts.
    """

    rows: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Counts a row."""
        self.rows += 1
        self.lengths[len(text)] += 1
        self.scripts[script_of(text)] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(shortened(text))

    def length(self, share: float) -> int:
        """The length that so large a share of the texts does not exceed."""
        wanted, seen = max(1, math.ceil(share * self.rows)), 0
        for length in sorted(self.lengths):
            seen += self.lengths[length]
            if seen >= wanted:
                return length
        return 0


@dataclass
class Inspection:
    """
    What data are like.

    Args:
        domains (`dict[str, Domain]`): by name.
        splits (`Counter[str]`): rows of each split that the data name.
        report ([`Report`]): what was noticed while reading.
        duplicates ([`Duplicates`]): texts that occur more than once.
        near (`NearDuplicates`): texts that are nearly equal, among the first rows.
    """

    domains: dict[str, Domain] = field(default_factory=dict)
    splits: Counter[str] = field(default_factory=Counter)
    report: Report = field(default_factory=Report)
    duplicates: Duplicates = field(default_factory=Duplicates)
    near: NearDuplicates = field(default_factory=lambda: NearDuplicates())  # noqa: PLW0108

    @property
    def rows(self) -> int:
        """That can be used."""
        return self.report.rows

    @property
    def characters(self) -> int:
        """Of all texts."""
        return sum(length * n for domain in self.domains.values() for length, n in domain.lengths.items())

    def add(self, row: Row) -> None:
        """Counts a row."""
        self.domains.setdefault(row.domain, Domain()).add(row.text)
        self.splits[row.split] += 1
        self.duplicates.add(row)
        self.near.add(row)


def inspect(source: RowSource) -> Inspection:
    """Reads all rows, those that cannot be used among them, and counts.

    Args:
        source ([`RowSource`]): the data, with `skip_bad_rows`.

    Raises:
        ValueError: a file cannot be read, or there is no row.
    """
    seen = Inspection()
    for row in read_rows(source, seen.report):
        seen.add(row)
    return seen


def script_of(text: str) -> str:
    """The script that most letters of a text are of, by the first word of their Unicode names, or `none`."""
    letters = [letter for letter in text[: 4 * _LETTERS] if letter.isalpha()][:_LETTERS]
    found = Counter(unicodedata.name(letter, "unknown").split()[0] for letter in letters)
    return found.most_common(1)[0][0].lower() if found else "none"


def shortened(text: str) -> str:
    """A text in one line, its beginning, without what a terminal would take as commands."""
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


class NearDuplicates:
    """
    Counts texts that share most of their runs of words with one of another domain or split, by MinHash with locality-
    sensitive hashing (Broder 1997), of the package `datasketch`; without it none is looked for.

    Args:
        most (`int`): rows that are compared.
    """

    def __init__(self, most: int = _NEAR_ROWS) -> None:
        self.is_installed = find_spec("datasketch") is not None
        self.most, self.rows = most if self.is_installed else 0, 0
        self.across: Counter[tuple[str, str]] = Counter()
        self.examples: dict[tuple[str, str], tuple[str, str]] = {}
        self._kept: list[Row] = []
        self._seen: set[bytes] = set()
        self._index: Any = None

    def add(self, row: Row) -> None:
        """Compares a row with those before; equal texts are no matter of this."""
        if self.rows >= self.most or digest(row.text) in self._seen:
            return
        self._seen.add(digest(row.text))
        self.rows += 1
        runs = _runs(row.text)
        if not runs:
            return
        sketch = self._sketch(runs)
        for number in self._index.query(sketch):
            self._count(self._kept[number], row)
        self._index.insert(len(self._kept), sketch)
        self._kept.append(row)

    def _sketch(self, runs: Iterable[str]) -> Any:
        from datasketch import MinHash, MinHashLSH

        if self._index is None:
            self._index = MinHashLSH(threshold=_NEAR, num_perm=_PERMUTATIONS)
        sketch = MinHash(num_perm=_PERMUTATIONS)
        sketch.update_batch([run.encode() for run in runs])
        return sketch

    def _count(self, one: Row, other: Row) -> None:
        for mine, theirs in ((one.domain, other.domain), (one.split, other.split)):
            if mine != theirs and _likeness(one.text, other.text) >= _NEAR:
                pair = (mine, theirs) if mine < theirs else (theirs, mine)
                self.across[pair] += 1
                self.examples.setdefault(pair, (shortened(one.text), shortened(other.text)))

    def notes(self) -> list[str]:
        """What was found, in words."""
        if not self.is_installed:
            return ['Near-duplicates were not looked for: that needs datasketch, `pip install "ir3de[data]"`.']
        notes = []
        for (one, other), number in self.across.most_common(3):
            such = " and ".join(map(repr, self.examples[one, other]))
            notes.append(f"{number:,} texts of {one!r} and {other!r} are nearly equal, such as {such}.")
        if notes and self.rows >= self.most:
            notes.append(f"Only the first {self.most:,} different texts were compared for near-duplicates.")
        return notes


def _runs(text: str) -> set[str]:
    """Its runs of three words, or all words of a shorter text; without case and punctuation."""
    words = re.findall(r"\w+", text.casefold())
    return {" ".join(words[i : i + _RUN]) for i in range(max(1, len(words) - _RUN + 1))} if words else set()


def _likeness(one: str, other: str) -> float:
    """How many of the runs of either text both have, 0 to 1 (Jaccard)."""
    mine, theirs = _runs(one), _runs(other)
    return len(mine & theirs) / max(1, len(mine | theirs))


def describe(seen: Inspection) -> str:
    """What data are like, in lines for a terminal."""
    domains = sorted(seen.domains.items(), key=lambda item: (-item[1].rows, item[0]))
    lines = [f"{seen.rows:,} rows of {len(domains)} domains, {seen.characters:,} characters."]
    if set(seen.splits) != {""}:
        lines.append(f"Splits: {counted({name or 'none': n for name, n in seen.splits.items()})}.")
    width = max(6, *(width_of(shortened(name)) for name, _ in domains))
    lines.append(f"  {'domain':{width}}     rows   median     90 %      max  scripts")
    for name, domain in domains:
        figures = " ".join(f"{domain.length(share):8,}" for share in (0.5, 0.9, 1.0))
        lines.append(f"  {to_left(shortened(name), width)} {domain.rows:8,} {figures}  {scripts(domain)}")
        lines += [f"    {example}" for example in domain.examples]
    lines.append("Lengths are in characters; the scripts are those of most letters of a text.")
    lines += [*seen.report.notes(), *seen.report.first_bad[1:], *seen.duplicates.notes(), *seen.near.notes()]
    lines += hints(seen)
    return "\n".join(lines)


def scripts(domain: Domain) -> str:
    """The scripts of a domain's texts and their shares, the most frequent first."""
    return ", ".join(f"{name} {100 * n / domain.rows:.0f} %" for name, n in domain.scripts.most_common(3))


def maybe_swapped(single: int, domains: int) -> str:
    """A question, where so many domains have a single row as if prompts were read as domains; else nothing."""
    if single <= max(1, _MOST_SINGLE * domains):
        return ""
    return f" {single:,} of {domains:,} domains have one: are the columns swapped? See --text-column, --domain-column."


def hints(seen: Inspection) -> list[str]:
    """What will stop a fit, or make it poor."""
    few = {name: domain.rows for name, domain in seen.domains.items() if domain.rows < 2}
    swapped = maybe_swapped(len(few), len(seen.domains))
    hints = [f"Domains with a single row cannot be fitted: {counted(few)}.{swapped}"] if few else []
    if len(seen.domains) < 2:
        hints.append("A router chooses between at least two domains, and here is one.")
    sizes = [domain.rows for domain in seen.domains.values()]
    if max(sizes) > 20 * statistics.median(sizes):
        hints.append("The largest domain is over twenty times the median one; a fit weighs domains alike all the same.")
    return hints
