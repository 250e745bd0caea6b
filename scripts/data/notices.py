"""What training rows are lacking, so that figures of them promise too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from ir3de.scripts.data.columns import Row
from ir3de.scripts.data.inspection import script_of
from ir3de.scripts.data.rows import counted

FEW = 20  # rows of a domain, below which its figures tell little
_READ = 200  # rows of a domain whose script is looked at


class Notices:
    """Looks at rows as they pass: how many a domain has, from how many sources, in how many groups that are named, and
    in which scripts the first of them are written.
    """

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.sources: dict[str, set[str]] = {}
        self.groups: dict[str, set[str]] = {}
        self.scripts: Counter[str] = Counter()

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Hands rows on, and counts."""
        for row in rows:
            self.rows[row.domain] += 1
            self.sources.setdefault(row.domain, set()).add(row.source)
            self.groups.setdefault(row.domain, set()).add(row.group)
            if self.rows[row.domain] <= _READ:
                self.scripts[script_of(row.text)] += 1
            yield row

    def shares_of_scripts(self) -> dict[str, float]:
        """The share of each script, the most frequent first."""
        return {name: number / self.scripts.total() for name, number in self.scripts.most_common()}

    def check_groups(self) -> None:
        """Raises ValueError where a group that a person names is a whole domain: it cannot be held out."""
        whole = sorted(name for name, groups in self.groups.items() if len(groups) == 1 and groups != {""})
        if whole:
            raise ValueError(
                f"--group-column names a single group for all rows of {', '.join(map(repr, whole))}: a group is held"
                " out as a whole, and nothing of the domain would be left. Name another column."
            )

    def notes(self) -> list[str]:
        """What a person should know, in words."""
        notes = []
        few = {name: number for name, number in self.rows.items() if number < FEW}
        if few:
            notes.append(f"Few rows: {counted(few)}. Figures of so few tell little; 40 and more are worth having.")
        if any(groups != {""} for groups in self.groups.values()):
            notes.append(
                "The held-out rows are of other values of --group-column than those that were fitted on meanwhile: the"
                " figures are of what such values give."
            )
            return notes
        single = sorted(name for name, sources in self.sources.items() if len(sources) < 2)
        if single:
            of_all = "every domain" if len(single) == len(self.rows) else ", ".join(map(repr, single[:3]))
            notes.append(
                f"The rows of {of_all} are of one source, as far as a column `source` or several --data tell, and so"
                " are the held-out ones: of prompts from elsewhere expect less. --validation FILE measures them."
            )
        return notes
