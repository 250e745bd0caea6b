"""Measures of a router: accuracy, calibration, out-of-scope detection and latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np

BINS = 15
SINGLE, BATCH, BATCHES, ROUNDS = 200, 64, 10, 5
SECONDS = 6.0  # after which a timing ends with what it has
Route = Callable[[list[str]], Any]


def recalls(labels: Any, p: Any) -> dict[int, float]:
    """Of each label, how often its prompts went where they belong; of equal probabilities the first counts."""
    right = p.argmax(axis=1) == labels
    return {int(label): float(right[labels == label].mean()) for label in np.unique(labels)}


def macro_accuracy(labels: Any, p: Any) -> float:
    """Mean recall of the labels that occur; 0 where none does."""
    values = recalls(labels, p).values()
    return sum(values) / len(values) if values else 0.0


def standard_error(labels: Any, p: Any) -> float:
    """Standard error of the macro accuracy, the domains' numbers of prompts given."""
    values = recalls(labels, p)
    variance = sum(value * (1 - value) / (labels == label).sum() for label, value in values.items())
    return float(variance**0.5) / len(values)


def reliability(labels: Any, p: Any) -> list[dict[str, float]]:
    """How often routes of about equal probability are right.

    Returns:
        `list[dict]`: of each bin of equal width that is not empty its mean `confidence`, its `accuracy` and its share
        of the `prompts`.
    """
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    bins = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    return [
        {
            "confidence": float(confidence[bins == b].mean()),
            "accuracy": float(right[bins == b].mean()),
            "prompts": float((bins == b).mean()),
        }
        for b in np.unique(bins)
    ]


def calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """Expected calibration error of what `reliability` returns."""
    return sum(b["prompts"] * abs(b["confidence"] - b["accuracy"]) for b in bins)


def auroc(inside: Any, outside: Any) -> float:
    """Probability that a value of `inside` is larger than one of `outside`, equal ones counted half."""
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, "left") + np.searchsorted(ordered, inside, "right")
    return float(below.mean() / (2 * len(outside)))


def latency(routes: dict[str, Route], texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Seconds a prompt, one at a time and in batches of 64: medians, after a warm-up.

    What is compared takes turns, call by call, so that a busy machine slows all of it alike. As time allows it goes
    through the prompts several times, each time in the other order: whoever comes second finds the words in the
    tokenizer's cache.

    Args:
        routes (`dict[str, Callable[[list[str]], Any]]`): what to time, by name.
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
    started = time.perf_counter()
    for turn, call in enumerate(chain.from_iterable(repeat(calls, ROUNDS))):
        for name, route in list(routes.items())[:: -1 if turn // len(calls) % 2 else 1]:
            before = time.perf_counter()
            route(call)
            seconds[name].append((time.perf_counter() - before) / len(call))
        if time.perf_counter() - started > SECONDS:
            break
    return {name: statistics.median(values) for name, values in seconds.items()}
