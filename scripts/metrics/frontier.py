"""Scores and costs of a router that chooses by expected scores: macro means, frontier, and the area under it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ir3de.outlook_ir3de import Point, hull
from ir3de.scripts.metrics.measures import Array, Integers

WEIGHTS = 4000  # of costs, that a frontier is drawn through


def macro_mean(values: Array, groups: Sequence[str]) -> float:
    """The mean of the groups' means, each group as heavy."""
    names = np.asarray(groups)
    return float(np.mean([values[names == name].mean() for name in np.unique(names)]))


def standard_error(values: Array, groups: Sequence[str]) -> float:
    """Of the macro mean, from the variance within each group."""
    names = np.asarray(groups)
    variances = [values[names == name].var() / (names == name).sum() for name in np.unique(names)]
    return float(np.sqrt(np.sum(variances)) / len(variances))


def chosen(values: Array, choice: Integers) -> Array:
    """What the chosen experts have: values of shape `(N, E)` and choices `(N,)` to `(N,)`."""
    return np.take_along_axis(values, choice[:, None], axis=1)[:, 0]


def frontier(
    expected_scores: Array, expected_costs: Array, scores: Array, costs: Array, groups: Sequence[str]
) -> list[Point]:
    """Points of a router under weights of costs from none to so heavy that the cheapest expert answers everything.

    Args:
        expected_scores, expected_costs (`np.ndarray` of shape `(N, E)`): what the router chooses by.
        scores, costs (`np.ndarray` of shape `(N, E)`): what it then gets.
        groups (`Sequence[str]`): of each prompt.
    """
    scale = float(expected_costs.max())
    points = []
    for weight in (0.0, *np.geomspace(1e-3 / scale, 1e4 / scale, WEIGHTS)):
        choice = (expected_scores - weight * expected_costs).argmax(axis=1)
        points.append(Point(macro_mean(chosen(costs, choice), groups), macro_mean(chosen(scores, choice), groups)))
    return points


def singles(scores: Array, costs: Array, groups: Sequence[str]) -> list[Point]:
    """A point for each expert that answers everything."""
    return [
        Point(macro_mean(costs[:, expert], groups), macro_mean(scores[:, expert], groups))
        for expert in range(scores.shape[1])
    ]


def area(points: Sequence[Point], cheapest: float, dearest: float) -> float:
    """Mean score under the hull, over costs from one to another; below the cheapest point it is 0."""
    corners = hull(points)
    costs, scores = np.array([p.cost for p in corners]), np.array([p.score for p in corners])
    inside = costs[(costs > cheapest) & (costs < dearest)]
    grid = np.unique(np.concatenate([[cheapest, dearest], inside]))
    heights = np.interp(grid, costs, scores)
    total = np.trapezoid(heights, grid)
    if costs[0] > cheapest:
        total -= heights[0] * (min(costs[0], dearest) - cheapest)
    return float(total / (dearest - cheapest))


def cost_to_match(points: Sequence[Point], score: float) -> float:
    """The least cost of a point with at least this score; NaN where none has it."""
    return min((point.cost for point in points if point.score >= score), default=float("nan"))
