"""How long a fit will take on this machine, from the numbers of rows and characters."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch

from ir3de.scripts.fitting.fit import RFF_MOST_BYTES
from ir3de.scripts.fitting.holding_out import FOLDS, HELD_OUT_MOST, HELD_OUT_WANTED, SAMPLE_MOST
from ir3de.scripts.fitting.search import PROMPT_LAMBDAS, TOKEN_LAMBDAS, TOKEN_NOISES

_START = 10.0  # seconds until the libraries and the embeddings are loaded
_CHARACTERS, _TOKENS = 4.0, 3e5  # of a token; tokenized a second and core
_COLUMNS, _RANDOM = 576, 4096  # of the embeddings; random features
_VOCABULARY, _MOST_VOCABULARY = 20_000, 49_152  # tokens that held-out prompts have, and that there are
_TRIAL, _TRIALS = 512, 8  # rows and columns of the product that is timed, and how often


class Estimate(NamedTuple):
    """
    Seconds that the parts of a fit take.

    Args:
        tokenizing (`float`): the prompts.
        choosing (`float`): trying candidates on held-out prompts.
        summing (`float`): all prompts, for the router that is saved.
    """

    tokenizing: float
    choosing: float
    summing: float

    @property
    def total(self) -> float:
        """All of it, and the start."""
        return _START + sum(self)

    def describe(self) -> str:
        """In words."""
        return (
            f"A fit takes about {_duration(self.total)} on this machine as it is now: {_duration(self.tokenizing)} to"
            f" tokenize, {_duration(self.choosing)} to choose and {_duration(self.summing)} to sum, with embeddings of"
            f" {_COLUMNS} columns."
        )


def estimate(rows: Mapping[str, int], characters: int) -> Estimate:
    """Estimates a fit that chooses everything.

    Args:
        rows (`Mapping[str, int]`): of each domain.
        characters (`int`): of all prompts.
    """
    rate = operations_a_second()
    fewest, domains = max(1, min(rows.values())), len(rows)
    folds = min(FOLDS, fewest, math.ceil(HELD_OUT_WANTED * FOLDS / fewest))
    sample = sum(min(SAMPLE_MOST, number * (FOLDS - 1) / FOLDS) for number in rows.values())
    held_out = sum(min(HELD_OUT_MOST, number / FOLDS) for number in rows.values())
    random = _RANDOM if domains * 8 * _RANDOM**2 <= RFF_MOST_BYTES else 0
    solved = len(TOKEN_NOISES) * len(PROMPT_LAMBDAS)

    def tried(columns: int, solutions: int) -> float:
        """Operations of one fold on so many columns: sums, solutions, scores of the vocabulary."""
        sums = 2 * sample * columns**2 + 2 * _VOCABULARY * columns**2
        return sums + solutions * (columns**3 / 3 + 2 * columns**2 * domains + 2 * _VOCABULARY * columns * domains)

    operations = tried(_COLUMNS, len(TOKEN_LAMBDAS)) + tried(_COLUMNS, solved)
    operations += tried(random // 2, solved) + tried(random, 1) if random else 0
    scored = held_out * domains * solved * 1e-7  # seconds: each candidate adds up every held-out prompt
    distinct = min(
        _MOST_VOCABULARY, 5 * (characters / _CHARACTERS / domains) ** 0.6
    )  # tokens of a domain, by Heaps' law
    final = (2 * sum(rows.values()) + domains * distinct) * (random or _COLUMNS) ** 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    tokenizing = characters / _CHARACTERS / _TOKENS / cores
    return Estimate(tokenizing, folds * (operations / rate + scored), final / rate)


def operations_a_second() -> float:
    """Floating-point operations in float64 that this machine does a second: the best of a few products."""
    X = torch.ones(_TRIAL, _TRIAL, dtype=torch.float64)
    seconds = []
    for _ in range(_TRIALS):
        start = time.perf_counter()
        X @ X
        seconds.append(time.perf_counter() - start)
    return 2.0 * _TRIAL**3 / min(seconds)


def _duration(seconds: float) -> str:
    """In the unit that suits."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
