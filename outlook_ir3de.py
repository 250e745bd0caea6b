"""What outcomes let expect of a router: score over cost, and who answers where under each weight of costs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .outcomes_ir3de import Ledger, expected
from .policy_ir3de import Panel

STEPS = 100  # of weights of costs
_MOST_NAMED, _MOST_LETTERS = 20, 40  # in the picture: experts, and letters of a name


class Point(NamedTuple):
    """
    Where a way to choose lies.

    Args:
        cost (`float`): mean of what the chosen experts cost.
        score (`float`): mean of what they scored, 0 to 1.
    """

    cost: float
    score: float


class Outlook(NamedTuple):
    """
    What a router expects of E experts in its D domains: of all but those that only route and were never judged.

    Args:
        domains (`Sequence[str]`): D names.
        experts (`Sequence[str]`): E names, the cheapest first.
        score (`np.ndarray` of shape `(D, E)`): 0 to 1.
        error (`np.ndarray` of shape `(D, E)`): standard error of the score; NaN for experts without outcomes.
        cost (`np.ndarray` of shape `(D, E)`): of an answer; NaN where it is not known.
        n (`np.ndarray` of shape `(D, E)`): judged answers.
    """

    domains: Sequence[str]
    experts: Sequence[str]
    score: Any
    error: Any
    cost: Any
    n: Any

    @classmethod
    def of(cls, panel: Panel, outcomes: Ledger, half_life: float | None = None) -> Outlook | None:
        """The outlook of a router; none without outcomes.

        Args:
            panel ([`Panel`]): of the router.
            outcomes ([`Ledger`]): that the panel was made with.
            half_life (`float`, *optional*): likewise.
        """
        if panel.outcomes is None:
            return None
        sums = outcomes.sums(panel.domains, panel.experts, half_life)
        pairs = expected(sums, panel.serves.numpy())
        cost = np.broadcast_to(panel.costs.numpy(), pairs.score.shape)
        judged = pairs.n.sum(axis=0) > 0
        kept = [place for place, name in enumerate(panel.experts) if judged[place] or name not in panel.mute]
        experts = [panel.experts[place] for place in kept]
        return cls(panel.domains, experts, *(table[:, kept] for table in (pairs.score, pairs.error, cost, pairs.n)))

    @property
    def unpriced(self) -> list[str]:
        """The experts whose costs are not known."""
        return [name for name, cost in zip(self.experts, self.cost.T, strict=True) if np.isnan(cost).any()]

    def choice(self, weight: float) -> Any:
        """Who answers each domain where it is recognised: columns, of shape `(D,)`."""
        worth = self.score if weight == 0 else self.score - weight * self.cost
        return worth.argmax(axis=1)

    def point(self, weight: float) -> Point:
        """Cost and score that are then expected, each domain as heavy."""
        rows, choice = np.arange(len(self.domains)), self.choice(weight)
        return Point(float(self.cost[rows, choice].mean()), float(self.score[rows, choice].mean()))

    def singles(self) -> list[Point]:
        """A point for each expert that answers everything."""
        means = zip(self.cost.mean(axis=0).tolist(), self.score.mean(axis=0).tolist(), strict=True)
        return [Point(*each) for each in means]

    def frontier(self) -> list[Point]:
        """The router's points under all cost weights, from the cheapest on."""
        return hull([self.point(weight) for weight in self.weights()])

    def turns(self) -> list[float]:
        """The cost weights at which another expert takes over a domain, in order."""
        found = set()
        for score, cost in zip(self.score, self.cost, strict=True):
            corners = hull([Point(float(c), float(s)) for c, s in zip(cost, score, strict=True)])
            for left, right in pairwise(corners):
                found.add((right.score - left.score) / (right.cost - left.cost))
        return sorted(found)

    def weights(self) -> list[float]:
        """A cost weight for each step of the slider: none, then from where the first domain turns to past the last."""
        turns = [] if self.unpriced else self.turns()
        if not turns:
            return [0.0] * (STEPS + 1)
        return [0.0, *map(float, np.geomspace(turns[0] * 0.9, turns[-1] * 1.1, STEPS))]


def hull(points: Sequence[Point]) -> list[Point]:
    """The upper hull that never falls: what can be had by mixing points, from the cheapest on, in order of cost."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda each: (each.cost, -each.score)):
        if kept and point.score <= kept[-1].score:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) <= _slope(kept[-2], point):
            kept.pop()
        kept.append(point)
    return kept


def _slope(left: Point, right: Point) -> float:
    return (right.score - left.score) / max(right.cost - left.cost, 1e-300)


def plot_frontier(path: Path, outlook: Outlook) -> bool:
    """Draws score over cost: the router as a line, each expert alone as a dot.

    Args:
        path (`Path`): of the PNG.
        outlook ([`Outlook`]): of the router.

    Returns:
        `bool`: whether it was drawn, for which every cost must be known, and matplotlib installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if outlook.unpriced:
        return False
    canvas = Figure(layout="constrained", figsize=(5.6, 3.4))
    axes = canvas.subplots()
    line, alone = outlook.frontier(), outlook.singles()
    axes.plot([point.cost for point in line], [point.score for point in line], "o-", ms=3, label="this router")
    axes.plot([point.cost for point in alone], [point.score for point in alone], "ks", ms=5)
    for name, point in list(zip(outlook.experts, alone, strict=True))[:_MOST_NAMED]:
        axes.annotate(
            name[:_MOST_LETTERS], point, xytext=(5, -9), textcoords="offset points", fontsize=8, parse_math=False
        )
    axes.set_xlabel("cost of an answer, each domain as frequent")
    axes.set_ylabel("expected score")
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save_picture(canvas, path)
    return True


def save_picture(canvas: Any, path: Path, dpi: int = 120, **more: Any) -> None:
    """Saves a figure as PNG; the same figures are the same bytes.

    Args:
        canvas (`matplotlib.figure.Figure`): that is drawn.
        path (`Path`): of the PNG.
        dpi (`int`): dots an inch.
        more (*optional*): options of `savefig`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(canvas)
    with warnings.catch_warnings():  # of each letter of a name that the font lacks, for which it draws a box
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        canvas.savefig(path, dpi=dpi, metadata={"Software": None}, **more)
