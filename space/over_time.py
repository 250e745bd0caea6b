"""What outcomes tell day by day: each expert's score, with intervals, and cost."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from html import escape
from typing import Any, NamedTuple

import numpy as np

from ir3de.outcomes_ir3de import COLUMNS, COST_ONE, ONE, Ledger
from ir3de.space import views
from ir3de.space.palette import Palette

_MOST_DAYS, _MOST_ROWS, _MOST_EXPERTS = 90, 7, 8
_LEAST_DAYS = 7  # that tell how much days differ
_INTERVAL = 1.96  # standard errors to either side, which hold 95 %
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 560, 220, 52, 14, 30  # of a picture
_ASIDE = 3  # that an expert's line is beside the next one's, so that intervals do not hide each other


class Days(NamedTuple):
    """
    Outcomes of T days and E experts, over all domains.

    Args:
        days (`list[str]`): on which some were judged, in order.
        experts (`list[str]`): names.
        n (`np.ndarray` of shape `(T, E)`): judged answers.
        score (`np.ndarray` of shape `(T, E)`): mean, 0 to 1; NaN where nothing was judged.
        error (`np.ndarray` of shape `(T, E)`): its standard error, from the spread of all days of the expert, since a
            day may have a single answer.
        cost (`np.ndarray` of shape `(T, E)`): mean of those that are known; NaN where none is.
        cost_error (`np.ndarray` of shape `(T, E)`): its standard error, from how much days differ, since the sums do
            not tell how much answers do; NaN where too few days have costs.
    """

    days: list[str]
    experts: list[str]
    n: Any
    score: Any
    error: Any
    cost: Any
    cost_error: Any

    @classmethod
    def of(cls, outcomes: Ledger, experts: Sequence[str]) -> Days | None:
        """The newest days of a ledger, and the experts that were judged most; None where nothing has a day.

        Args:
            outcomes ([`Ledger`]): of the router.
            experts (`Sequence[str]`): of the router.
        """
        dated = [
            (part.day, expert, part.sums.sum(axis=0))
            for expert in experts
            for part in outcomes.contributions.get(expert, {}).values()
            if part.day is not None
        ]
        days = sorted({day for day, _, _ in dated})[-_MOST_DAYS:]
        if not days:
            return None
        sums = np.zeros((len(days), len(experts), len(COLUMNS)))
        for day, expert, row in dated:
            if day >= days[0]:
                sums[days.index(day), list(experts).index(expert)] += row
        most = np.argsort(-sums[..., 0].sum(axis=0), kind="stable")[:_MOST_EXPERTS]
        kept = sorted(place for place in most if sums[:, place, 0].any())
        return cls(days, [experts[place] for place in kept], *_means(sums[:, kept]))


def _means(sums: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Numbers, scores with their errors and costs with theirs, `(T, E)` each, from sums `(T, E, 9)`."""
    n, score, squared = (sums[..., column] / ONE for column in range(3))
    priced, cost = (sums[..., COLUMNS.index(name)] for name in ("n_cost", "cost"))
    with np.errstate(invalid="ignore", divide="ignore"):
        level = score.sum(axis=0) / n.sum(axis=0)
        variance = np.maximum(squared.sum(axis=0) / n.sum(axis=0) - level**2, 0)
        weight, mean = priced / ONE, (cost / COST_ONE) / (priced / ONE)
        return n, score / n, np.sqrt(variance / n), mean, _error_between(mean, weight)


def _error_between(mean: Any, weight: Any) -> Any:
    """Standard errors of days' means from how much these differ, `(T, E)`.

    Means of n_t values around one level m have as their sum of n_t (mean_t - m)^2, over the days less one, the values'
    variance; where the level itself moves this is larger.
    """
    days = (weight > 0).sum(axis=0)
    level = np.nansum(weight * mean, axis=0) / weight.sum(axis=0)
    variance = np.nansum(weight * (mean - level) ** 2, axis=0) / (days - 1)
    return np.sqrt(np.where(days >= _LEAST_DAYS, variance, np.nan) / np.where(weight > 0, weight, np.nan))


def over_time(outcomes: Ledger, experts: Sequence[str], palette: Palette) -> str:
    """Scores and costs by day, as HTML; empty where the ledger has no days.

    Args:
        outcomes ([`Ledger`]): of the router.
        experts (`Sequence[str]`): of the router.
        palette ([`Palette`]): of the page.
    """
    told = Days.of(outcomes, experts)
    if told is None:
        return ""
    pictures = [_drawn(told, palette, "Score", told.score, told.error, 1.0)]
    if not np.isnan(told.cost).all():
        pictures.append(_drawn(told, palette, "Cost of an answer", told.cost, told.cost_error))
    legend = " ".join(palette.badge(name) for name in told.experts)
    newest = f" The table has the newest {_MOST_ROWS} days." if len(told.days) > _MOST_ROWS else ""
    note = (
        "Of answers that have a day: the mean score with the interval that holds it with 95 %, how many were judged,"
        f" and the mean cost with such an interval, where {_LEAST_DAYS} days tell how much days differ. Prompts differ"
        f" from day to day, and so may scores.{newest}"
    )
    side = f'<div class="ir-side">{"".join(pictures)}</div>'
    return f'<h3>Over time</h3>{views.message(note)}{side}<p class="ir-legend">{legend}</p>{_table(told, palette)}'


def _table(told: Days, palette: Palette) -> str:
    """The newest days, the latest first."""
    rows = []
    for row in reversed(range(len(told.days))[-_MOST_ROWS:]):
        cells = "".join(f"<td>{_cell(told, row, column)}</td>" for column in range(len(told.experts)))
        rows.append(f'<tr><th scope="row">{told.days[row]}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{palette.badge(name)}</th>' for name in told.experts)
    head = f'<thead><tr><th scope="col">day</th>{heads}</tr></thead>'
    return (
        '<div class="ir-scroll" tabindex="0" role="region" aria-label="Scores and costs by day"><table class="ir-table'
        f' ir-days ir-sticky">{head}<tbody>{"".join(rows)}</tbody></table></div>'
    )


def _cell(told: Days, row: int, column: int) -> str:
    """An expert's day."""
    tables = (told.n, told.score, told.error, told.cost, told.cost_error)
    n, score, error, cost, cost_error = (table[row, column] for table in tables)
    if np.isnan(score):
        return "-"
    low, high = max(score - _INTERVAL * error, 0), min(score + _INTERVAL * error, 1)
    lines = [f"{low:.2f} to {high:.2f}", f"{n:,.0f} judged"]
    if not np.isnan(cost):
        off = "" if np.isnan(cost_error) else f" ± {_INTERVAL * cost_error:.2g}"
        lines.append(f"costs {cost:.3g}{off}")
    return f"<b>{score:.2f}</b>" + "".join(f"<small>{line}</small>" for line in lines)


class _Frame(NamedTuple):
    """
    Where days and values lie in a picture.

    Args:
        days (`list[str]`): the first is at the left, the last at the right.
        top (`float`): value at the top; at the bottom it is 0.
    """

    days: list[str]
    top: float

    def place(self, day: str, value: float) -> tuple[float, float]:
        """Where a value of a day lies."""
        first, last, here = (date.fromisoformat(each).toordinal() for each in (self.days[0], self.days[-1], day))
        across = (here - first) / (last - first) if last > first else 0.5
        return _LEFT + 16 + (_WIDTH - _LEFT - 38) * across, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - value / self.top)

    def sides(self) -> str:
        """Lines across at values, and the first and the last day."""
        drawn = []
        for share in (0, 0.5, 1):
            _, y = self.place(self.days[0], share * self.top)
            drawn.append(
                f'<line x1="{_LEFT}" x2="{_WIDTH - 6}" y1="{y:.1f}" y2="{y:.1f}" class="ir-grid"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share * self.top:.3g}</text>'
            )
        for day, x, anchor in ((self.days[0], _LEFT, "start"), (self.days[-1], _WIDTH - 6, "end"))[: len(self.days)]:
            drawn.append(f'<text x="{x}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{day}</text>')
        return "".join(drawn)


def _drawn(told: Days, palette: Palette, what: str, values: Any, errors: Any, top: float | None = None) -> str:
    """A line an expert, over days, with intervals where there are errors; up to a value, or as high as they reach."""
    if top is None:
        top = float(np.nanmax(values + _INTERVAL * np.nan_to_num(errors))) or 1.0
    frame = _Frame(told.days, top)
    lines = []
    for column, name in enumerate(told.experts):
        known = [row for row in range(len(told.days)) if not np.isnan(values[row, column])]
        points = [(told.days[row], float(values[row, column])) for row in known]
        spans = [_INTERVAL * float(errors[row, column]) for row in known]
        aside = _ASIDE * (column - (len(told.experts) - 1) / 2)
        where = f'style="{palette.style(name)}" transform="translate({aside:.1f} 0)"'
        lines.append(f"<g {where}>{_line(frame, name, points, spans)}</g>")
    said = f"{what} of {len(told.experts)} experts from {told.days[0]} to {told.days[-1]}; a table follows"
    return (
        f'<figure class="ir-figure"><figcaption>{escape(what)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        f' role="img" aria-label="{escape(said)}">{frame.sides()}{"".join(lines)}</svg></figure>'
    )


def _line(frame: _Frame, name: str, points: Sequence[tuple[str, float]], spans: Sequence[float]) -> str:
    """One expert: its days joined, a dot each, and how far off each may be."""
    places = [frame.place(*point) for point in points]
    marks = ['<polyline points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in places) + '"/>']
    for (day, value), span in zip(points, spans, strict=True):
        if np.isnan(span):
            continue
        (x, low), (_, high) = frame.place(day, max(value - span, 0)), frame.place(day, min(value + span, frame.top))
        marks.append(f'<line class="ir-span" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
    for (day, value), (x, y) in zip(points, places, strict=True):
        told = escape(f"{name}, {day}: {value:.3g}")
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{told}</title></circle>')
    return "".join(marks)
