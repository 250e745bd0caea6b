"""From probabilities to a choice: a subset of experts, their costs, a minimum score, and a conversation's own pace."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import torch


class Ranked(TypedDict):
    """
    An expert in a ranking.

    Args:
        expert (`str`): its name.
        score (`float`): its probability.
    """

    expert: str
    score: float


class TokenRecord(TypedDict):
    """
    What a token said.

    Args:
        token (`str`): its text.
        entropy (`float`): of its probabilities, in nats.
        vote (`str`): the expert that it holds most likely.
        weight (`float`): how far it lifts that expert above the mean of all.
        counted (`bool`): whether it had a part in the decision.
        contribution (`float`): to the chosen expert's `support`, which is the sum of them.
    """

    token: str
    entropy: float
    vote: str
    weight: float
    counted: bool
    contribution: float


class Failure(TypedDict):
    """
    An expert that did not answer.

    Args:
        expert (`str`): its name.
        error (`str`): what kept it, in a line.
    """

    expert: str
    error: str


class _Choice(TypedDict):
    """What every record has."""

    expert: str | None
    score: float
    ranking: list[Ranked]


class Record(_Choice, total=False):
    """
    What the router says of a prompt, and what the chosen expert answers.

    Args:
        expert (`str`, *optional*): who was chosen, or after failures the one that answered; None where the score was
            below the minimum and there is no fallback.
        score (`float`): the probability of that expert, or where a fallback stands in of the best one.
        ranking (`list[Ranked]`): the experts, best first.
        fallback (`bool`): true where the score was below the minimum; else the key is missing, as with all below.
        second_opinion (`bool`): true where that was asked.
        tokens (`list[TokenRecord]`): where the call was to explain.
        support (`float`): likewise, the sum of the tokens' contributions.
        failures (`list[Failure]`): experts that were asked and did not answer.
        generated_text (`Any`): the answer; a list of them where several were asked for; a chat or text with the prompt
            before it where that was asked for; None where nobody answered.
    """

    fallback: bool
    second_opinion: bool
    tokens: list[TokenRecord]
    support: float
    failures: list[Failure]
    generated_text: Any


class Policy(NamedTuple):
    """
    How a call chooses among experts.

    Args:
        experts (`Sequence[str]`, *optional*): those that may be chosen; all by default.
        cost_weight (`float`): score per unit of cost that an expert must gain to be worth it.
        min_score (`float`): below it the fallback answers, or none.
        fallback_expert (`str`, *optional*): who answers below `min_score`; by default nobody.
        stickiness (`float`): by how much another expert must lead to take over a conversation.
        top_n (`int`, *optional*): how many experts the ranking lists; all by default.
        second_below (`float`): below it a second opinion is asked; by default never.
    """

    experts: Sequence[str] | None = None
    cost_weight: float = 0.0
    min_score: float = 0.0
    fallback_expert: str | None = None
    stickiness: float = 0.0
    top_n: int | None = None
    second_below: float = 0.0

    def check(self, names: Sequence[str], costs: Mapping[str, float]) -> None:
        """Checks the policy against a router's experts.

        Args:
            names (`Sequence[str]`): of the router's experts.
            costs (`Mapping[str, float]`): of those that have one.

        Raises:
            ValueError: a field is out of range, or names an expert that does not exist or has no cost.
        """
        allowed = names if self.experts is None else self.experts
        if isinstance(allowed, str) or not allowed:
            raise ValueError(f"`experts` must list at least one of {list(names)}, got {self.experts!r}.")
        for name in (*allowed, *([] if self.fallback_expert is None else [self.fallback_expert])):
            if name not in names:
                raise ValueError(f"There is no expert {name!r}; this router's experts are {list(names)}.")
        for field in ("min_score", "second_below"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"`{field}` is a probability, between 0 and 1; got {getattr(self, field)!r}.")
        for field in ("cost_weight", "stickiness"):
            if not 0 <= getattr(self, field) < math.inf:  # infinity times a cost of 0 is no number
                raise ValueError(f"`{field}` must be a number of at least 0, got {getattr(self, field)!r}.")
        if self.top_n is not None and self.top_n < 1:
            raise ValueError(f"`top_n` must be a whole number of at least 1, got {self.top_n!r}.")
        missing = [name for name in allowed if name not in costs]
        if self.cost_weight > 0 and missing:
            raise ValueError(f"`cost_weight` needs a `cost` in the spec of every expert; {missing} have none.")

    def decide(
        self, p: torch.Tensor, names: Sequence[str], costs: Mapping[str, float], turns: Sequence[int]
    ) -> list[Record]:
        """Chooses an expert for each prompt.

        Args:
            p (`torch.Tensor` of shape `(sum of turns, D)`): probabilities, a row a turn of a conversation.
            names (`Sequence[str]`): of the D experts.
            costs (`Mapping[str, float]`): of those that have one.
            turns (`Sequence[int]`): rows of each prompt; more than one only where stickiness needs the turns before.

        Returns:
            `list[Record]`: for each prompt `expert`, its `score`, the `ranking`, and `fallback` where the score was
            below the minimum. Scores are probabilities among the experts that may be chosen; with a `cost_weight` the
            ranking is by score less weighted cost.
        """
        self.check(names, costs)
        p, names = self._among(p, names)
        worth = p
        if self.cost_weight > 0:
            worth = p - self.cost_weight * torch.tensor([costs[name] for name in names], dtype=p.dtype)
        order = _ranks(worth, self.top_n)
        if len(p) == len(turns):
            rows = zip(order.tolist(), p.gather(1, order).tolist(), strict=True)
            return [self._record(names, ranks[0], scores[0], ranks, scores) for ranks, scores in rows]
        chosen = self._follow(worth, order[:, 0].tolist(), turns)
        last = torch.tensor(turns).cumsum(0) - 1
        p, order = p[last], order[last]
        scores = p.gather(1, torch.tensor(chosen).unsqueeze(1)).squeeze(1)
        fields = [field.tolist() for field in (scores, order, p.gather(1, order))]
        return [self._record(names, index, *row) for index, *row in zip(chosen, *fields, strict=True)]

    def unsure(self, p: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        """Which rows of `p`, `(rows, D)`, score less than `second_below` among the experts that may be chosen."""
        return self._among(p, names)[0].amax(dim=1) < self.second_below

    def _among(self, p: torch.Tensor, names: Sequence[str]) -> tuple[torch.Tensor, Sequence[str]]:
        """Probabilities and names of the experts that may be chosen."""
        if self.experts is None:
            return p, names
        columns = torch.tensor([index for index, name in enumerate(names) if name in self.experts])
        p, names = p[:, columns], [names[index] for index in columns.tolist()]
        return p / p.sum(dim=1, keepdim=True), names

    def _follow(self, worth: torch.Tensor, best: list[int], turns: Sequence[int]) -> list[int]:
        """The choice at the last turn of each prompt, when an expert is left only for one that leads by the margin."""
        chosen, start = [], 0
        for number in turns:
            current = best[start]
            for turn in range(start + 1, start + number):
                if worth[turn, best[turn]] - worth[turn, current] > self.stickiness:
                    current = best[turn]
            chosen.append(current)
            start += number
        return chosen

    def _record(self, names: Sequence[str], chosen: int, score: float, ranks: list[int], scores: list[float]) -> Record:
        ranking: list[Ranked] = [{"expert": names[i], "score": value} for i, value in zip(ranks, scores, strict=True)]
        if score < self.min_score:
            return {"expert": self.fallback_expert, "score": score, "ranking": ranking, "fallback": True}
        return {"expert": names[chosen], "score": score, "ranking": ranking}


def _ranks(worth: torch.Tensor, top_n: int | None) -> torch.Tensor:
    """Indices of the largest values of each row, largest first; of equal ones the smaller index first."""
    if top_n is None or top_n >= worth.shape[1]:
        return worth.argsort(dim=1, descending=True, stable=True)
    top = worth.topk(top_n, dim=1).indices.sort(dim=1).values
    return top.gather(1, worth.gather(1, top).argsort(dim=1, descending=True, stable=True))
