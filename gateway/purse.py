"""A budget at work: the price on cost that a request is routed with, and what happens when nothing is left."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from ir3de.policy_ir3de import Panel, Record
from ir3de.specs_ir3de import ExpertSpec, is_number
from ir3de.traffic.budget import Spending

from .choice import Choice
from .errors import GatewayError
from .exchange import Exchange

logger = logging.getLogger(__name__)

_EXCESS = 1e-6  # of a cost, that it may lie above what is left: measured costs are sums of rounded numbers


class Purse:
    """
    Holds the requests of a gateway to a budget.

    Args:
        spending ([`Spending`]): what keeps to it.
    """

    def __init__(self, spending: Spending) -> None:
        self.spending = spending
        self._warned = False

    def priced(self, options: dict[str, Any], panel: Panel) -> dict[str, Any]:
        """A request's options with a `cost_weight` of at least the price."""
        asked = options.get("cost_weight", 0.0)
        unpriced = panel.lacking(panel.unpriced)
        if unpriced and not self._warned:
            logger.warning("The budget sets no price, since %s have no cost.", unpriced)
        self._warned = bool(unpriced)
        if unpriced or not is_number(asked):  # what is no number is refused by the pipeline
            return options
        return {**options, "cost_weight": max(asked, self.spending.price)}

    def saw(self, record: Record, panel: Panel) -> None:
        """Counts a request that was routed."""
        if not panel.lacking(panel.unpriced):
            entries = [entry for entry in record["ranking"] if entry["expert"] not in panel.mute]
            costs = expected_costs(record, panel)
            self.spending.saw([entry["score"] for entry in entries], [costs[entry["expert"]] for entry in entries])

    def afforded(self, choice: Choice, panel: Panel, is_named: bool = False) -> Choice:
        """The choice with what is left, and what each expert is expected to cost.

        Args:
            choice ([`Choice`]): without regard to what is left.
            panel ([`Panel`]): of the router.
            is_named (`bool`): whether the request named its expert.

        Raises:
            GatewayError: as [`Purse.afford`].
        """
        costs = expected_costs(choice.record, panel)
        able = self.afford(choice.candidates, costs, is_named)
        if able[0] != choice.candidates[0]:
            entries = choice.record["ranking"]
            score = next((entry["score"] for entry in entries if entry["expert"] == able[0]), choice.record["score"])
            choice = choice._replace(record={**choice.record, "expert": able[0], "score": score})
        return choice._replace(candidates=able, costs=costs)

    def afford(self, candidates: list[str], costs: dict[str, float], is_named: bool = False) -> list[str]:
        """Those that may answer with what is left: as they come, or at the budget's end from the cheapest on.

        Args:
            candidates (`list[str]`): best first.
            costs (`dict[str, float]`): that are expected of all experts.
            is_named (`bool`): whether the request named its expert.

        Raises:
            GatewayError: at its end the budget has nobody answer, or an expert was asked by name.
        """
        left, end = self.spending.left, self.spending.budget.end

        def fits(name: str) -> bool:
            """Whether an expert's answer can be paid."""
            return costs.get(name, 0.0) * (1 - _EXCESS) <= left

        if fits(candidates[0]):
            if end == "cheapest":
                return candidates
            return [name for name in candidates if fits(name)]  # nor may one that stands in
        is_cheapest = costs.get(candidates[0], 0.0) <= min(costs.values())
        if end == "cheapest" and (is_cheapest or not is_named):
            return sorted(candidates, key=lambda name: costs.get(name, 0.0))
        message = f"What may be spent in this {self.spending.budget.per} is spent"
        if end == "cheapest":
            message += "; the cheapest expert answers what is sent to `ir3de`"
        raise GatewayError(429, "budget_spent", f"{message}.", retry_after=max(1.0, self.spending.seconds_left))

    def reserve(self, exchange: Exchange, choice: Choice) -> None:
        """Takes what an answer is expected to cost from what is left, until it ends."""
        exchange.expected = choice.costs
        exchange.reserved = choice.costs.get(choice.candidates[0], 0.0)
        self.spending.reserve(exchange.reserved)

    def settle(self, exchange: Exchange, spec: ExpertSpec | None) -> None:
        """Takes what an answer did cost by its tokens, else what its expert was expected to, for what was reserved."""
        cost = exchange.cost_of_tokens(spec)
        if exchange.outcome == "refused" or not exchange.expert:  # a server that refuses a request answers nothing
            cost = 0.0
        elif cost is None:
            cost = exchange.expected.get(exchange.expert, exchange.reserved)
        self.spending.settle(exchange.reserved, cost)


def expected_costs(record: Record, panel: Panel) -> dict[str, float]:
    """What each expert that answers is expected to cost: as the record says, else in the mean of all domains."""
    table = panel.costs if panel.costs.ndim == 1 else panel.costs.mean(dim=0)
    costs = dict(zip(panel.experts, np.nan_to_num(table.numpy()).tolist(), strict=True))
    costs |= {entry["expert"]: entry["cost"] for entry in record["ranking"] if "cost" in entry}
    return {name: cost for name, cost in costs.items() if name not in panel.mute}
