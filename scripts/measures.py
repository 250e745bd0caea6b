"""Measures of a router: accuracy, calibration, out-of-scope detection and latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

BINS = 15
SINGLE, BATCH, BATCHES = 40, 64, 6
SECONDS = 6.0  # after which a timing ends with what it has


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


def latency(route: Callable[[list[str]], Any], texts: Sequence[str]) -> dict[str, float]:
    """Seconds a prompt, one at a time and in batches of 64: medians, after a warm-up.

    Args:
        route (`Callable[[list[str]], Any]`): to time.
        texts (`Sequence[str]`): prompts; the first 40 are timed one at a time, the first 384 in batches.
    """
    batches = [list(texts[start : start + BATCH]) for start in range(0, min(len(texts), BATCH * BATCHES), BATCH)]
    return {
        "single": _median_seconds(route, [[text] for text in texts[:SINGLE]]),
        "batch": _median_seconds(route, batches),
    }


def _median_seconds(route: Callable[[list[str]], Any], calls: Sequence[list[str]]) -> float:
    for call in calls[:2]:
        route(call[:8])
    seconds, started = [], time.perf_counter()
    for call in calls:
        before = time.perf_counter()
        route(call)
        seconds.append((time.perf_counter() - before) / len(call))
        if time.perf_counter() - started > SECONDS:
            break
    return statistics.median(seconds)
