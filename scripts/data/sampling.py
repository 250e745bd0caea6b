"""Random samples of rows, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def sample_rows(rows: Sequence[T], most: int | None) -> list[T]:
    """At most `most` random rows, in random order; all of them where that is None or 0."""
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    return [rows[i] for i in order[: most or None]]


def sample_per_domain(domains: Sequence[str], most: int | None, seed: int) -> list[int]:
    """Chooses at most `most` random rows of each domain; a smaller sample of a seed is part of a larger one.

    Args:
        domains (`Sequence[str]`): of each row.
        most (`int`, *optional*): rows a domain; by default all.
        seed (`int`): of the order in which rows are taken.

    Returns:
        `list[int]`: indices of the chosen rows; all in their own order where `most` is None, else in random order.
    """
    if most is None:
        return list(range(len(domains)))
    taken: dict[str, int] = {}
    kept = []
    for i in np.random.default_rng(seed).permutation(len(domains)).tolist():
        taken[domains[i]] = taken.get(domains[i], 0) + 1
        if taken[domains[i]] <= most:
            kept.append(i)
    return kept
