"""Measures of a router: accuracy, calibration, out-of-scope detection and latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Route = Callable[[list[str]], object]

BINS = 15
SINGLE, BATCH, BATCHES, ROUNDS = 200, 64, 10, 5
SECONDS = 6.0  # after which a timing ends with what it has


class Bin(TypedDict):
    """
    Routes of about equal probability.

    Args:
        confidence (`float`): their mean probability.
        accuracy (`float`): how many are right, 0 to 1.
        prompts (`float`): their share of all prompts.
    """

    confidence: float
    accuracy: float
    prompts: float


def recalls(labels: Integers, p: Array) -> dict[int, float]:
    """Of each label, how often its prompts went where they belong; of equal probabilities the first counts."""
    right = p.argmax(axis=1) == labels
    return {int(label): float(right[labels == label].mean()) for label in np.unique(labels)}


def mean_recall(recalls: Mapping[Any, float]) -> float:
    """Macro accuracy: the mean of the domains' recalls, each domain as heavy; 0 where there is none."""
    return sum(recalls.values()) / len(recalls) if recalls else 0.0


def macro_accuracy(labels: Integers, p: Array) -> float:
    """Mean recall of the labels that occur; 0 where none does."""
    return mean_recall(recalls(labels, p))


def standard_error_of(recalls: Mapping[Any, float], prompts: Mapping[Any, int]) -> float:
    """Standard error of the macro accuracy, from the binomial variance of each recall.

    Args:
        recalls (`Mapping`): by domain, 0 to 1.
        prompts (`Mapping`): by domain, how many the recall is of.
    """
    variances = (recall * (1 - recall) / prompts[domain] for domain, recall in recalls.items())
    return float(sum(variances) ** 0.5) / len(recalls)


def standard_error(labels: Integers, p: Array) -> float:
    """Standard error of the macro accuracy, the domains' numbers of prompts given."""
    values = recalls(labels, p)
    return standard_error_of(values, {label: int((labels == label).sum()) for label in values})


def reliability(confidence: Array, right: NDArray[np.bool_]) -> list[Bin]:
    """How often routes of about equal probability are right.

    Args:
        confidence (`np.ndarray` of shape `(N,)`): the probability of each route.
        right (`np.ndarray` of shape `(N,)`): whether it went where the prompt belongs.

    Returns:
        `list[Bin]`: those of `BINS` bins of equal width that are not empty.
    """
    numbers = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    bins: list[Bin] = []
    for number in np.unique(numbers):
        inside = numbers == number
        bins.append(
            {
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(right[inside].mean()),
                "prompts": float(inside.mean()),
            }
        )
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error of what `reliability` returns (Guo et al. 2017): the mean gap between confidence and
    accuracy, each bin as heavy as its share of the prompts.
    """
    return sum(b["prompts"] * abs(b["confidence"] - b["accuracy"]) for b in bins)


def auroc(inside: Array, outside: Array) -> float:
    """Probability that a value of `inside` is larger than one of `outside`, equal ones counted half."""
    return float(_shares_below(inside, outside).mean())


def auroc_difference(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[float, float]:
    """The AUROC of one score less that of another on the same prompts, and its standard error (DeLong et al. 1988).

    Args:
        one (`tuple[np.ndarray, np.ndarray]`): a score of the prompts inside, `(N,)`, and of those outside, `(M,)`.
        other (`tuple[np.ndarray, np.ndarray]`): the other score of the same prompts.
    """
    above = _shares_below(*one) - _shares_below(*other)  # of each prompt inside, how many outside lie below it
    below = _shares_below(one[1], one[0]) - _shares_below(other[1], other[0])
    variance = sum(float(each.var(ddof=1)) / len(each) for each in (above, below))
    return float(above.mean()), variance**0.5


def _shares_below(values: Array, others: Array) -> Array:
    """Of each value the share of others that are smaller, equal ones counted half."""
    ordered = np.sort(others)
    both = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return cast(Array, both / (2 * len(others)))


def latency(routes: dict[str, Route], texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Seconds a prompt, one at a time and in batches of 64: medians, after a warm-up.

    What is compared takes turns, call by call, so that a busy machine slows all of it alike. As time allows it goes
    through the prompts several times, each time in the other order: whoever comes second finds the words in the
    tokenizer's cache.

    Args:
        routes (`dict[str, Callable[[list[str]], object]]`): what to time, by name.
        texts (`Sequence[str]`): prompts; the first 200 are timed one at a time, the first 640 in batches.

    Returns:
        `dict`: `single` and `batch`, each with the seconds by name.
    """
    batches = [list(texts[start : start + BATCH]) for start in range(0, min(len(texts), BATCH * BATCHES), BATCH)]
    singles = [[text] for text in texts[:SINGLE]]
    return {"single": _median_seconds(routes, singles), "batch": _median_seconds(routes, batches)}


def _median_seconds(routes: dict[str, Route], calls: Sequence[list[str]]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in routes}
    for route in routes.values():
        route(calls[0][:8])
    in_order = list(routes.items())
    started = time.perf_counter()
    for turn, call in enumerate(chain.from_iterable(repeat(calls, ROUNDS))):
        odd_round = turn // len(calls) % 2 == 1
        for name, route in reversed(in_order) if odd_round else in_order:
            before = time.perf_counter()
            route(call)
            seconds[name].append((time.perf_counter() - before) / len(call))
        if time.perf_counter() - started > SECONDS:
            break
    return {name: statistics.median(values) for name, values in seconds.items()}
