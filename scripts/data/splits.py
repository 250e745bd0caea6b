"""Labelled data in splits: to fit on, to test on, and prompts that no domain should claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ir3de.scripts.data.rows import Row, RowSource, read_rows
from ir3de.scripts.data.sampling import sample_per_domain, sample_rows

TRAIN, TESTS = "train", ("test", "test_shift")


@dataclass(frozen=True)
class DataOptions:
    """
    How data sets are read.

    Args:
        text_column (`str`): name of the column with the prompt.
        domain_column (`str`): name of the column with the domain.
        oos_domain (`str`): domain of test prompts that no expert should answer.
        max_train (`int`): random training prompts of each domain; 0: all.
        max_test (`int`): random prompts of each test split; 0: all.
    """

    text_column: str = "text"
    domain_column: str = "domain"
    oos_domain: str = "oos"
    max_train: int = 0
    max_test: int = 0


@dataclass
class DataSet:
    """
    Labelled prompts to compare routers on.

    Args:
        name (`str`): for people.
        train (`list[Row]`): to fit and to choose on.
        tests (`dict[str, list[Row]]`): by split, prompts of the domains of `train`.
        outside (`dict[str, list[Row]]`): by split, prompts that no domain should claim.
        left_out (`dict[str, dict[str, int]]`): by split and domain, rows whose domain has no training rows.
    """

    name: str
    train: list[Row]
    tests: dict[str, list[Row]] = field(default_factory=dict)
    outside: dict[str, list[Row]] = field(default_factory=dict)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def domains(self) -> list[str]:
        """Those of the training prompts, sorted."""
        return sorted({row.domain for row in self.train})

    def add_test(self, split: str, rows: Sequence[Row], options: DataOptions) -> None:
        """Adds a split, unless none of its rows has a domain that can be learnt."""
        domains = set(self.domains)
        known = [row for row in rows if row.domain in domains]
        if not known:
            return
        outside = [row for row in rows if row.domain == options.oos_domain]
        others = Counter(row.domain for row in rows if row.domain not in domains | {options.oos_domain})
        self.tests[split] = sample_rows(known, options.max_test)
        self.outside[split] = sample_rows(outside, options.max_test)
        self.left_out[split] = dict(others)


def read_data_set(entry: str, options: DataOptions) -> DataSet:
    """Reads a data set.

    Args:
        entry (`str`): NAME=FILE, or NAME=FILE,FILE.
        options ([`DataOptions`]): how.

    Raises:
        ValueError: it is not NAME=FILE, or has no two domains to learn or nothing to test on.
    """
    name, equals, listed = entry.partition("=")
    if not equals or not name or not listed:
        raise ValueError(f"--data takes NAME=FILE or NAME=FILE,FILE, got {entry!r}.")
    files = listed.split(",")
    splits = {split: _read_split(files, split, options) for split in (TRAIN, *TESTS)}
    train = splits[TRAIN]
    kept = sample_per_domain([row.domain for row in train], options.max_train or None, seed=0)
    data = DataSet(name, [train[i] for i in kept])
    if len(data.domains) < 2:
        raise ValueError(f"{name}: rows whose `split` is 'train' must have at least two domains; got {data.domains}.")
    for split in TESTS:
        data.add_test(split, splits[split], options)
    if not data.tests:
        raise ValueError(f"{name}: no rows whose `split` is {' or '.join(TESTS)} and whose domain has training rows.")
    return data


def _read_split(files: Sequence[str], split: str, options: DataOptions) -> list[Row]:
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"There is no file {file}: --data takes files of JSON Lines.")
    source = RowSource(tuple(files), options.text_column, options.domain_column, where=(f"split={split}",))
    return list(read_rows(source))
