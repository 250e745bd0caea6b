"""What may be spent in a period, and the price on cost that makes it last.

A price is score that a unit of cost must be worth, as `cost_weight` is. It is the least at which the requests that are
still to come can be paid from what is left:

    what is left / requests to come  =  mean over the latest requests of c(argmax_e q(e) - price c(e))

The latest requests say what a price would make them cost, and how many are to come is told by how the period before was
spread, or without one by the pace so far. Where less comes than was expected the price falls, where
more comes it rises, up to where the cheapest expert answers everything. What an answer cost in truth takes the place of
what it was expected to when it ends.
"""

from __future__ import annotations

import math
import re
import time
from calendar import monthrange
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from ir3de.choices_ir3de import BUDGET_ENDS, BUDGET_PERIODS

_LATEST = 512  # requests that a price is tried on
_EVERY = 32  # requests after which what prices would make them cost is looked at anew
_PRICES = np.concatenate([[0.0], np.geomspace(1e-4, 1e4, 129)])  # in units of score per mean cost of a request
_SLICES = 96  # of a period, in which requests are counted
_PACE = 1 / 24  # of the first period, that requests are taken to have come in at least: a few of them tell no pace
_OLD = 0.3  # of the requests of the period before, that its pace counts for against the pace so far
_LEAST = 0.5  # of the requests that the rest of the period before had, that are to come in any case
_AIM = 0.99  # of the budget, so that answers which cost more than was expected fit too


class Budget(NamedTuple):
    """
    What may be spent.

    Args:
        cost (`float`): in the unit of the experts' costs.
        per (`str`): `"hour"`, `"day"` or `"month"`, of UTC.
        end (`str`): once it is spent, `"cheapest"` has the cheapest expert answer, `"refuse"` nobody.
    """

    cost: float
    per: str
    end: str = BUDGET_ENDS[0]

    @classmethod
    def read(cls, text: str, end: str = BUDGET_ENDS[0]) -> Budget:
        """Reads `20/day`.

        Raises:
            ValueError: it is no cost, no period, or no end.
        """
        found = re.fullmatch(r"\s*(\S+?)\s*/\s*(\w+)\s*", text)
        try:
            cost = float(found[1]) if found else math.nan
        except ValueError:
            cost = math.nan
        if found is None or not 0 < cost < math.inf or found[2] not in BUDGET_PERIODS:
            periods = ", ".join(BUDGET_PERIODS)
            raise ValueError(f"A budget is a cost above 0 and one of {periods}, as in 20/day; got {text!r}.")
        if end not in BUDGET_ENDS:
            raise ValueError(f"At its end a budget knows {' and '.join(BUDGET_ENDS)}; got {end!r}.")
        return cls(cost, found[2], end)

    def period(self, now: float) -> tuple[float, float]:
        """Beginning and end of the period that a moment is in, as seconds since 1970."""
        at = datetime.fromtimestamp(now, UTC).replace(minute=0, second=0, microsecond=0)
        if self.per == "hour":
            return at.timestamp(), (at + timedelta(hours=1)).timestamp()
        at = at.replace(hour=0)
        if self.per == "day":
            return at.timestamp(), (at + timedelta(days=1)).timestamp()
        at = at.replace(day=1)
        return at.timestamp(), (at + timedelta(days=monthrange(at.year, at.month)[1])).timestamp()


class Spending:
    """
    Keeps to a budget.

    Args:
        budget ([`Budget`]): what may be spent.
        before (`Callable`, *optional*): what was spent since a moment, as a store knows it; asked at the start and
            where a period begins. Without it what was spent before a restart is not known.
        share (`int`): servers among which the budget is shared evenly, such as the workers of a gateway.
        clock (`Callable`): gives seconds since 1970.
    """

    def __init__(
        self,
        budget: Budget,
        before: Callable[[float], float] | None = None,
        share: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.budget = budget
        self.most = budget.cost / share
        self._before = before
        self._share = share
        self._clock = clock
        self._latest: deque[tuple[Any, Any]] = deque(maxlen=_LATEST)
        self._count = np.zeros(_SLICES)
        self._last: Any = None  # the counts of the period before
        self._reserved = 0.0
        self._new = 0
        self._curve: tuple[Any, Any] = (np.zeros(1), np.zeros(1))
        now = clock()
        self._begins, self._ends = budget.period(now)
        self._since = now  # requests of this period have been counted
        self._spent = self._known()
        self._spent_in: dict[float, float] = {}  # periods that were left, by when they began

    @property
    def spent(self) -> float:
        """In this period, with what answers under way are expected to cost."""
        self._turn()
        return self._spent + self._reserved

    @property
    def left(self) -> float:
        """What may still be spent."""
        return max(0.0, self.most - self.spent)

    @property
    def seconds_left(self) -> float:
        """Until the next period begins."""
        return self._ends - self._turn()

    @property
    def price(self) -> float:
        """Score that a unit of cost must be worth now: the least at which the requests to come can be paid."""
        now = self._turn()
        if not self._latest:
            return 0.0
        if self._new >= min(_EVERY, len(self._latest) // 8):
            self._new, self._curve = 0, self._costs_at_prices()
        affordable = max(0.0, _AIM * self.most - self.spent) / max(self._to_come(now), 1.0)
        prices, costs = self._curve
        return float(prices[min(int((costs > affordable).sum()), len(prices) - 1)])

    def saw(self, scores: Any, costs: Any) -> None:
        """Counts a request.

        Args:
            scores (`np.ndarray` of shape `(E,)`): that its experts are expected to have.
            costs (`np.ndarray` of shape `(E,)`): likewise.
        """
        now = self._turn()
        self._latest.append((np.asarray(scores, dtype=np.float64), np.asarray(costs, dtype=np.float64)))
        self._count[self._slice(now)] += 1
        self._new += 1

    def reserve(self, cost: float) -> None:
        """An answer begins that is expected to cost this."""
        self._turn()
        self._reserved += cost

    def settle(self, reserved: float, cost: float) -> None:
        """It ended, and did cost this, in the period that it ends in."""
        self._turn()
        self._reserved = max(0.0, self._reserved - reserved)
        self._spent += cost

    def _turn(self) -> float:
        """Begins a new period where one has begun. A clock that goes back opens no new one: what was spent stays spent,
        also once it is right again, unless a store knows better.
        """
        now = self._clock()
        if not self._begins <= now < self._ends:
            self._spent_in[self._begins] = self._spent
            is_next, was_whole = now >= self._ends, self._since <= self._begins
            self._begins, self._ends = self.budget.period(now)
            if is_next:
                if was_whole:  # one that was begun in its middle does not tell how requests are spread
                    self._last = self._count
                self._count, self._since = np.zeros(_SLICES), self._begins
            if self._before is None:
                self._spent = self._spent_in.get(self._begins, 0.0 if is_next else self._spent)
            else:
                self._spent = self._known()
        return now

    def _known(self) -> float:
        """What a store knows to have been spent in this period."""
        return 0.0 if self._before is None else self._before(self._begins) / self._share

    def _slice(self, now: float) -> int:
        place = (now - self._begins) / (self._ends - self._begins)
        return min(_SLICES - 1, max(0, int(place * _SLICES)))

    def _to_come(self, now: float) -> float:
        """Requests that the rest of the period is expected to bring."""
        done = float(self._count.sum())
        place = min(1.0, max(0.0, (now - self._begins) / (self._ends - self._begins)))
        if self._last is None:
            counted = max(now - self._since, _PACE * (self._ends - self._begins))
            return done / counted * (self._ends - now)
        total = float(self._last.sum())
        before = float(np.interp(place * _SLICES, np.arange(_SLICES + 1), np.concatenate([[0], self._last.cumsum()])))
        times = (done + _OLD * total) / (before + _OLD * total)  # as many as in the period before, if that is its pace
        # Bursts come at other times than the last: what has not come yet is still to come. But the rest is not empty.
        return max(times * total - done, _LEAST * times * (total - before))

    def _costs_at_prices(self) -> tuple[Any, Any]:
        """Prices, and what the latest requests would have cost at each in the mean, which falls as prices rise."""
        width = max(len(scores) for scores, _ in self._latest)  # some requests only few experts can answer
        scores, costs = np.full((len(self._latest), width), -np.inf), np.zeros((len(self._latest), width))
        for row, (of_row, cost) in enumerate(self._latest):
            scores[row, : len(of_row)], costs[row, : len(cost)] = of_row, cost
        prices = _PRICES / max(float(costs.mean()), 1e-300)
        worth = scores - prices[:, None, None] * costs
        chosen = np.take_along_axis(costs[None], worth.argmax(axis=2)[..., None], axis=2)[..., 0]
        return prices, chosen.mean(axis=1)
