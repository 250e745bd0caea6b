"""The Outcomes tab: how well each expert does in each domain and on which day, at which cost, and what weighing costs
changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import gradio as gr
import numpy as np

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.outlook_ir3de import STEPS, Outlook, Point
from ir3de.space import views
from ir3de.space.over_time import over_time
from ir3de.space.palette import Palette
from ir3de.space.site import Options, Site, Visitor

_MOST_ROWS, _MOST_COLUMNS = 40, 20  # of the heat map
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 560, 300, 48, 14, 40  # of the picture
_INTERVAL = 1.96  # standard errors to either side, which hold 95 %
_NONE = "This router has no outcomes: notes of how well experts answered, which ir3de outcomes adds."


def build(site: Site, visitor: gr.State, tab: gr.Tab) -> None:
    """Builds the tab."""
    step = gr.Slider(
        0,
        STEPS,
        0,
        step=1,
        label="How much costs count",
        info="0: not at all, the best answers. 100: as much as makes a difference.",
        elem_id="step",
    )
    traded = gr.HTML(elem_id="frontier")
    table = gr.HTML(elem_id="heat-map")
    days = gr.HTML(elem_id="over-time")

    def weigh(step: float, visitor: Visitor | None) -> str:
        """What is expected at this weight of costs."""
        return frontier(site, int(step), visitor)

    def show(step: float, visitor: Visitor | None) -> tuple[str, str, str]:
        """All that the tab shows."""
        model = site.router_of(visitor).model
        by_day = over_time(model.outcomes, model.config.expert_names, site.palette_of(visitor))
        return weigh(step, visitor), heat_map(site, visitor), by_day

    private: Options = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    step.change(weigh, [step, visitor], traded, trigger_mode="always_last", **private)
    gr.on([tab.select, visitor.change], show, [step, visitor], [traded, table, days], **private)


def _outlook(model: IR3DEModel) -> Outlook | None:
    return Outlook.of(model.panel, model.outcomes, model.config.half_life)


def heat_map(site: Site, visitor: Visitor | None) -> str:
    """Domains by experts, darker where the score is higher, as HTML."""
    outlook, palette = _outlook(site.router_of(visitor).model), site.palette_of(visitor)
    if outlook is None:
        return ""
    low, high = float(outlook.score.min()), float(outlook.score.max())
    best = outlook.choice(0)
    rows = []
    for row, domain in enumerate(outlook.domains[:_MOST_ROWS]):
        cells = [
            _cell(outlook, row, column, (outlook.score[row, column] - low) / max(high - low, 1e-9), column == best[row])
            for column in range(min(len(outlook.experts), _MOST_COLUMNS))
        ]
        rows.append(f'<tr><th scope="row">{palette.badge(domain)}</th>{"".join(cells)}</tr>')
    heads = "".join(f'<th scope="col">{palette.badge(name)}</th>' for name in outlook.experts[:_MOST_COLUMNS])
    caption = "What each expert is expected to score in each domain"
    cut = (len(outlook.domains), len(outlook.experts)) != (len(rows), min(len(outlook.experts), _MOST_COLUMNS))
    more = f" Shown are {len(rows)} of {len(outlook.domains)} domains, and the cheapest experts." if cut else ""
    note = (
        "Score from 0 to 1 with the interval that holds it with 95 %, the number of answers that were judged, and the"
        f" cost of an answer where it is known. The best of each domain has a frame.{more}"
    )
    table = f'<thead><tr><th scope="col">domain</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody>'
    return (
        f'<h3>{escape(caption)}</h3>{views.message(note)}<div class="ir-scroll" tabindex="0" role="region"'
        f' aria-label="{escape(caption)}"><table class="ir-table ir-heat ir-sticky">{table}</table></div>'
    )


def _cell(outlook: Outlook, row: int, column: int, shade: float, best: bool) -> str:
    """A pair."""
    score, error = outlook.score[row, column], outlook.error[row, column]
    n, cost = outlook.n[row, column], outlook.cost[row, column]
    span = ""
    if not np.isnan(error):
        low, high = max(score - _INTERVAL * error, 0), min(score + _INTERVAL * error, 1)
        span = f"{low:.2f} to {high:.2f}"
    judged = f"{n:,.0f} judged" if n >= 0.5 else "not judged"
    lines = [span, judged, *([] if np.isnan(cost) else [f"costs {cost:.3g}"])]
    kind = ' class="ir-best"' if best else ""
    small = "".join(f"<small>{line}</small>" for line in lines if line)
    return f'<td{kind} style="--w:{8 + 62 * shade:.0f}%"><b>{score:.2f}</b>{small}</td>'


def frontier(site: Site, step: int, visitor: Visitor | None) -> str:
    """Score over cost, where the router is at a step of the slider, and who answers then, as HTML."""
    outlook, palette = _outlook(site.router_of(visitor).model), site.palette_of(visitor)
    if outlook is None:
        return views.message(_NONE)
    if unpriced := outlook.unpriced:
        who = ", ".join(unpriced[:3]) + (f" and {len(unpriced) - 3} more" if len(unpriced) > 3 else "")
        return views.message(f"Costs cannot be weighed: there are none of {who}.")
    weight = outlook.weights()[step]
    here, alone, line = outlook.point(weight), outlook.singles(), outlook.frontier()
    picture, table = _drawn(outlook, palette, line, alone, here), _answering(outlook, palette, weight)
    told = views.message(_told(outlook, weight, here, alone))
    return f'<h3>Score over cost</h3>{told}<div class="ir-side">{picture}{table}</div>'


def _told(outlook: Outlook, weight: float, here: Point, alone: Sequence[Point]) -> str:
    """What the slider's step means, in words."""
    top = max(range(len(alone)), key=lambda place: alone[place].score)
    best = alone[top]
    saved = f", at {here.cost / best.cost:.0%} of its cost" if best.cost > 0 else ""
    return (
        f"With cost_weight={weight:.3g} an answer is expected to score {here.score:.3f} and to cost {here.cost:.3g}."
        f" The best single expert, {outlook.experts[top]}, scores {best.score:.3f} at {best.cost:.3g}: the router is"
        f" {here.score - best.score:+.3f}{saved}. Each domain counts the same here, and is taken to be recognised."
    )


def _answering(outlook: Outlook, palette: Palette, weight: float) -> str:
    """Who answers each domain."""
    rows = [
        (
            palette.badge(domain),
            palette.badge(outlook.experts[column]),
            f"{outlook.score[row, column]:.2f}",
            f"{outlook.cost[row, column]:.3g}",
        )
        for row, (domain, column) in enumerate(zip(outlook.domains, outlook.choice(weight), strict=True))
    ]
    return views.table(("domain", "who answers", "score", "cost"), rows[:_MOST_ROWS], "Who answers what")


class _Frame(NamedTuple):
    """
    Where costs and scores lie in the picture, and what is written along its sides.

    Args:
        dearest (`float`): cost at the right; at the left it is 0.
        low (`float`): score at the bottom.
        high (`float`): score at the top.
    """

    dearest: float
    low: float
    high: float

    @classmethod
    def around(cls, points: Sequence[Point]) -> _Frame:
        """A frame with some room around the scores."""
        low, high = min(point.score for point in points), max(point.score for point in points)
        room = 0.08 * (high - low) + 0.01
        return cls(max(point.cost for point in points) or 1.0, max(low - room, 0), min(high + room, 1))

    def place(self, cost: float, score: float) -> tuple[float, float]:
        """Where a point lies."""
        across, up = cost / self.dearest, (score - self.low) / (self.high - self.low)
        return _LEFT + 8 + (_WIDTH - _LEFT - 24) * across, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - up)

    def sides(self) -> list[str]:
        """Lines across at scores, and the numbers of scores and costs."""
        drawn = [f'<text x="{_LEFT + 8}" y="{_HEIGHT - 5}">cost of an answer</text>']
        for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
            score, cost = self.low + share * (self.high - self.low), share * self.dearest
            x, y = self.place(cost, score)
            drawn += [
                f'<line x1="{_LEFT}" x2="{_WIDTH - 6}" y1="{y:.1f}" y2="{y:.1f}" class="ir-grid"/>',
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{score:.2f}</text>',
                f'<text x="{x:.1f}" y="{_HEIGHT - 22}" text-anchor="{anchor}">{cost:.3g}</text>',
            ]
        return drawn


def _drawn(outlook: Outlook, palette: Palette, line: Sequence[Point], alone: Sequence[Point], here: Point) -> str:
    """The router's frontier as a line, each expert alone as a dot, and where the slider is as a ring."""
    frame = _Frame.around([*line, *alone, here])
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in (frame.place(*point) for point in line))
    marks = [*frame.sides(), f'<polyline points="{corners}"/>']
    for name, point in zip(outlook.experts, alone, strict=True):
        x, y = frame.place(*point)
        told = escape(f"{name} alone: score {point.score:.3f}, cost {point.cost:.3g}")
        dot = f'class="ir-alone" style="{palette.style(name)}" cx="{x:.1f}" cy="{y:.1f}" r="6"'
        marks.append(f"<circle {dot}><title>{told}</title></circle>")
    x, y = frame.place(*here)
    marks.append(f'<circle class="ir-here" cx="{x:.1f}" cy="{y:.1f}" r="8"/>')
    legend = " ".join(palette.badge(name) for name in outlook.experts[:_MOST_COLUMNS])
    said = f"The router is expected to score {here.score:.3f} at a cost of {here.cost:.3g}"
    return (
        f'<figure class="ir-figure"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}">'
        f'{"".join(marks)}</svg><figcaption class="ir-hint">Line: the router. Ring: the slider. Dots: one expert alone.'
        f'</figcaption><p class="ir-legend">{legend}</p></figure>'
    )


def most_weight(model: IR3DEModel) -> float:
    """The largest cost weight worth setting: 1, or with outcomes that tell costs a round one past the last turn."""
    outlook = _outlook(model)
    turns = [] if outlook is None or outlook.unpriced else outlook.turns()
    if not turns:
        return 1.0
    return float(f"{1.2 * turns[-1]:.0e}")
