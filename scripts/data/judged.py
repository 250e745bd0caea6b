"""Judged prompts as a table: what each of several experts scored, and what it cost, to compare routers on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ir3de.outcome_rows_ir3de import Outcome, read_rows
from ir3de.scripts.metrics.measures import Array, Integers


@dataclass(frozen=True)
class Judged:
    """
    Prompts with the scores of several experts.

    Args:
        texts (`list[str]`): N prompts.
        groups (`list[str]`): where each came from: its `source` up to a slash, as the name of a domain.
        scores (`np.ndarray` of shape `(N, E)`): 0 to 1; NaN where an expert was not judged.
        costs (`np.ndarray` of shape `(N, E)`): NaN where it is not known.
    """

    texts: list[str]
    groups: list[str]
    scores: Array
    costs: Array

    def take(self, rows: Sequence[int] | Integers) -> Judged:
        """Some of the prompts."""
        picked = np.asarray(rows, dtype=np.int64)
        texts = [self.texts[row] for row in picked]
        groups = [self.groups[row] for row in picked]
        return Judged(texts, groups, self.scores[picked], self.costs[picked])

    def seen(self, mask: Array) -> Judged:
        """The same prompts, where experts were judged only where a mask of shape `(N, E)` is true."""
        return Judged(self.texts, self.groups, np.where(mask, self.scores, np.nan), np.where(mask, self.costs, np.nan))

    @property
    def has_costs(self) -> bool:
        """Whether every cost is known."""
        return not np.isnan(self.costs).any()


@dataclass(frozen=True)
class JudgedData:
    """
    A data set of judged prompts.

    Args:
        name (`str`): for people.
        experts (`list[str]`): E names, sorted.
        train (`Judged`): to fit and to choose on.
        test (`Judged`): to measure on.
    """

    name: str
    experts: list[str]
    train: Judged
    test: Judged


def read_judged(path: str | Path) -> JudgedData:
    """Reads a file of outcomes whose rows have `split`, `train` or `test`, and `source`.

    Raises:
        ValueError: a row is malformed, or a split is missing.
    """
    rows: dict[str, list[tuple[str, list[Outcome]]]] = {"train": [], "test": []}
    for place, row, outcomes in read_rows(path):
        if row.get("split") not in rows or not isinstance(row.get("source"), str):
            raise ValueError(f"{place}: expected `split`, train or test, and `source`; got {sorted(row)}.")
        rows[row["split"]].append((row["source"], outcomes))
    experts = sorted({outcome.expert for split in rows.values() for _, outcomes in split for outcome in outcomes})
    for split, found in rows.items():
        if not found:
            raise ValueError(f"{path} has no rows whose `split` is {split!r}.")
    name = Path(path).name.split(".")[0]
    return JudgedData(name, experts, _table(rows["train"], experts), _table(rows["test"], experts))


def domain_name(source: str) -> str:
    """The group of a source as the name of a domain."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", source.split("/", maxsplit=1)[0]).strip("-.")


def _table(rows: Sequence[tuple[str, list[Outcome]]], experts: Sequence[str]) -> Judged:
    place = {expert: column for column, expert in enumerate(experts)}
    scores = np.full((len(rows), len(experts)), np.nan)
    costs = scores.copy()
    for row, (_, outcomes) in enumerate(rows):
        for outcome in outcomes:
            scores[row, place[outcome.expert]] = outcome.score
            if outcome.cost is not None:
                costs[row, place[outcome.expert]] = outcome.cost
    return Judged(
        [outcomes[0].text for _, outcomes in rows], [domain_name(source) for source, _ in rows], scores, costs
    )
