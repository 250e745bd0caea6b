"""From probabilities of domains to a choice among experts.

With p(d | x) of the domains, and what each expert is expected to score, to cost and to take in each:

    q(e | x) = sum_d p(d | x) q_de,  c(e | x) = sum_d p(d | x) c_de,  s(e | x) = sum_d p(d | x) s_de
    choose the e with the largest q(e | x) - cost_weight c(e | x) - latency_weight s(e | x)

Where each domain has an expert of its own and there are no outcomes, q(e | x) = p(own domain | x): the paper's choice.

A call may *explore*, so that outcomes come of others than the best alone: among experts that are expected to lose at
most `explore_loss`, what each is worth is drawn from a normal distribution about what is expected, as wide as its
standard error, and the largest is taken (Thompson sampling).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch

from .outcomes_ir3de import Ledger, expected
from .specs_ir3de import ExpertSpec, has_source, served

_DOMAINS_TOLD = 5  # in a record, unless it is to explain


class _Ranked(TypedDict):
    """What every entry of a ranking has."""

    expert: str
    score: float


class Ranked(_Ranked, total=False):
    """
    An expert in a ranking.

    Args:
        expert (`str`): its name.
        score (`float`): what it is expected to score; without outcomes the probability that its domains are meant.
        cost (`float`): that is expected, where it was measured; else the key is missing.
        seconds (`float`): likewise.
    """

    cost: float
    seconds: float


class DomainScore(TypedDict):
    """
    A domain that was recognised.

    Args:
        domain (`str`): its name.
        score (`float`): its probability.
    """

    domain: str
    score: float


class PairRecord(TypedDict):
    """
    A pair that had a part in the chosen expert's score.

    Args:
        domain (`str`): its name.
        score (`float`): what the expert is expected to score there.
        share (`float`): what this adds to the expert's score: times the probability of the domain.
        outcomes (`float`): that this comes from; 0 where the specs alone speak.
    """

    domain: str
    score: float
    share: float
    outcomes: float


class _TokenFamiliarity(TypedDict, total=False):
    """What a token's record has where the router tells familiarity."""

    known: bool
    familiarity: float


class TokenRecord(_TokenFamiliarity):
    """
    What a token said.

    Args:
        token (`str`): its text.
        entropy (`float`): of its probabilities, in nats.
        vote (`str`): the expert that it holds most likely.
        weight (`float`): how far it lifts that expert above the mean of all.
        counted (`bool`): whether it had a part in the decision.
        contribution (`float`): to the chosen expert's `support`, which is the sum of them.
        known (`bool`): whether any prompt that the router was fitted on has it, where the router tells familiarity.
        familiarity (`float`): likewise, what it adds to the prompt's score; see [`TokenFamiliarity`].
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
        expert (`str`, *optional*): who was chosen, or after failures the one that answered; None where score or
            familiarity was below the minimum and there is no fallback.
        score (`float`): of that expert, or where a fallback stands in of the best one; see [`Ranked`].
        ranking (`list[Ranked]`): the experts, best first.
        fallback (`bool`): true where score or familiarity was below the minimum; else the key is missing, as with all
            below.
        familiarity (`float`): the share of held-out prompts that were less familiar, where the router tells it.
        domains (`list[DomainScore]`): what was recognised, the likeliest few; where domains and experts differ or there
            are outcomes. Where the call was to explain, all of them.
        pairs (`list[PairRecord]`): where the call was to explain and `domains` are told, what decided for the expert.
        explored (`bool`): true where another than the best was chosen, to learn of it.
        second_opinion (`bool`): true where that was asked.
        id (`str`): of this record alone, where the call was to tell what is `recognised`.
        recognised (`dict[str, int]`): likewise, units in which an outcome of it counts in each domain.
        tokens (`list[TokenRecord]`): where the call was to explain.
        support (`float`): likewise, the sum of the tokens' contributions.
        failures (`list[Failure]`): experts that were asked and did not answer.
        reason (`str`): why nobody was asked: one prompt of several is empty or not text, or its expert only routes.
        generated_text (`Any`): the answer; a list of them where several were asked for; a chat or text with the prompt
            before it where that was asked for; None where nobody answered.
    """

    fallback: bool
    familiarity: float
    domains: list[DomainScore]
    pairs: list[PairRecord]
    explored: bool
    second_opinion: bool
    id: str
    recognised: dict[str, int]
    tokens: list[TokenRecord]
    support: float
    failures: list[Failure]
    reason: str
    generated_text: Any


class Measured(NamedTuple):
    """
    What records tell of costs and seconds, as measured by domain: those in the first domain, and how much more they are
    in each. So what is the same in all domains is told as it is, though probabilities add up to 1 but for rounding.

    Args:
        first (`np.ndarray` of shape `(2 E,)`): the costs in the first domain, then the seconds; NaN where they were not
            measured.
        more (`np.ndarray` of shape `(D, 2 E)`): what there is to add to them in each.
    """

    first: Any
    more: Any

    @classmethod
    def of(cls, costs: Any, seconds: Any) -> Measured:
        """What these tables, `(D, E)` each, say."""
        table = np.concatenate([costs, seconds], axis=1)
        return cls(table[0], table - table[0])

    def among(self, experts: Any) -> Measured:
        """The same of some experts, as indices."""
        columns = np.concatenate([experts, experts + len(self.first) // 2])
        return Measured(self.first[columns], np.ascontiguousarray(self.more[:, columns]))

    def expected(self, p: Any) -> Any:
        """Costs and seconds of prompts by their probabilities of the domains, `(N, D)`: of shape `(N, 2, E)`."""
        # Each row by itself: one product of all would add up in another order than that of a single prompt. NumPy takes
        # a third of torch's time for so few numbers.
        more = (p[:, None] @ self.more)[:, 0]
        return (more + self.first).reshape(len(p), 2, -1)


class Panel(NamedTuple):
    """
    What a router knows of its D domains and E experts when it chooses.

    Args:
        domains (`Sequence[str]`): the columns of the probabilities.
        experts (`Sequence[str]`): of equal ones the first is taken.
        serves (`torch.Tensor` of shape `(D, E)`): true where an expert serves a domain, as its spec says.
        costs (`torch.Tensor` of shape `(E,)` or `(D, E)`): of each expert, as its spec says, or as measured by domain;
            NaN where there is none.
        seconds (`torch.Tensor` of shape `(D, E)`, *optional*): as measured; NaN where they were not.
        scores (`torch.Tensor` of shape `(D, E)`, *optional*): expected of each pair; None where the probabilities are
            the scores, since each domain has an expert of its own and there are no outcomes.
        outcomes (`torch.Tensor` of shape `(D, E)`, *optional*): how many there are of each pair, old ones counted less
            where the router has a half-life; None without any.
        errors (`torch.Tensor` of shape `(D, E)`, *optional*): standard errors of the scores; of an expert without
            outcomes the largest of all. None without any.
        mute (`frozenset[str]`): experts that only route, where others answer. Who of them has no cost, or no seconds,
            comes after all others where these are weighed.
        unpriced (`frozenset[str]`): experts without a cost.
        untimed (`frozenset[str]`): experts whose seconds were not measured.
        told ([`Measured`], *optional*): costs and seconds as measured, which records tell. None without outcomes.
    """

    domains: Sequence[str]
    experts: Sequence[str]
    serves: torch.Tensor
    costs: torch.Tensor
    seconds: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    outcomes: torch.Tensor | None = None
    errors: torch.Tensor | None = None
    mute: frozenset[str] = frozenset()
    unpriced: frozenset[str] = frozenset()
    untimed: frozenset[str] = frozenset()
    told: Measured | None = None

    @classmethod
    def of(
        cls, specs: Sequence[ExpertSpec], domains: Sequence[str], ledger: Ledger, half_life: float | None = None
    ) -> Panel:
        """The panel of a router.

        Args:
            specs (`Sequence[ExpertSpec]`): of the experts, sorted by name.
            domains (`Sequence[str]`): sorted.
            ledger ([`Ledger`]): of outcomes.
            half_life (`float`, *optional*): days after which these count half.
        """
        experts = [spec["name"] for spec in specs]
        serves = np.array([[domain in served(spec) for spec in specs] for domain in domains])
        costs = np.array([spec.get("cost", np.nan) for spec in specs], dtype=np.float64)
        sums = ledger.sums(domains, experts, half_life)
        silent = frozenset(spec["name"] for spec in specs if not has_source(spec))
        mute = silent if len(silent) < len(experts) else frozenset()
        if not sums.any() and list(domains) == experts and np.array_equal(serves, np.eye(len(experts))):
            unpriced = _without(experts, costs)
            tables = torch.from_numpy(serves), torch.from_numpy(costs)
            return cls(domains, experts, *tables, mute=mute, unpriced=unpriced, untimed=frozenset(experts))
        pairs = expected(sums, serves)
        told = to_six_digits(pairs.cost)
        if not np.isnan(pairs.cost).all():
            told = np.where(np.isnan(pairs.cost), costs, told)
            costs = np.where(np.isnan(pairs.cost), costs, pairs.cost)
        # Of equal ones the cheaper is taken, then the one whose name comes first.
        mean = costs if costs.ndim == 1 else costs.mean(axis=0)
        order = np.argsort(np.where(np.isnan(mean), np.inf, mean), kind="stable")

        def table(values: Any) -> torch.Tensor:
            """Its columns in that order."""
            return torch.from_numpy(np.ascontiguousarray(values[..., order]))

        timed = not np.isnan(pairs.seconds).all()
        return cls(
            domains=domains,
            experts=[experts[column] for column in order],
            serves=table(serves),
            costs=table(costs),
            seconds=table(pairs.seconds) if timed else None,
            scores=table(pairs.score),
            outcomes=table(pairs.n) if sums.any() else None,
            errors=table(np.where(np.isnan(pairs.error), np.nanmax(pairs.error), pairs.error)) if sums.any() else None,
            mute=mute,
            unpriced=_without(experts, costs),
            untimed=_without(experts, pairs.seconds),
            told=Measured.of(told[:, order], to_six_digits(pairs.seconds)[:, order]) if sums.any() else None,
        )

    def lacking(self, without: frozenset[str], names: Collection[str] | None = None) -> list[str]:
        """Who keeps costs or seconds from being weighed, sorted: those without, but for experts that only route where
        others answer.

        Args:
            without (`frozenset[str]`): `unpriced` or `untimed`.
            names (`Collection[str]`, *optional*): of the experts that may be chosen; all by default.
        """
        named = set(self.experts if names is None else names)
        able = named - self.mute
        return sorted(without & (able or named))

    def among(self, names: Collection[str] | None) -> tuple[Panel, torch.Tensor | None]:
        """The panel of these experts, and the domains that count, as indices; None for all.

        Domains count that one of these experts serves, or none of all; with outcomes all do, since they tell what each
        expert scores in each.
        """
        if names is None:
            return self, None
        kept = torch.tensor([name in names for name in self.experts])
        counts = torch.ones(len(self.domains), dtype=torch.bool)
        if self.outcomes is None:
            counts = self.serves[:, kept].any(dim=1) | ~self.serves.any(dim=1)
        rows, columns = counts.nonzero()[:, 0], kept.nonzero()[:, 0]

        def part(table: torch.Tensor | None) -> torch.Tensor | None:
            """Its rows and columns that are kept."""
            return None if table is None else table[rows][:, columns]

        panel = self._replace(
            domains=[self.domains[row] for row in rows],
            experts=[self.experts[column] for column in columns],
            serves=self.serves[rows][:, columns],
            costs=self.costs[columns] if self.costs.ndim == 1 else self.costs[rows][:, columns],
            seconds=part(self.seconds),
            scores=part(self.scores),
            outcomes=part(self.outcomes),
            errors=part(self.errors),
            told=None if self.told is None else self.told.among(columns.numpy()),
        )
        return panel, rows


def to_six_digits(values: Any) -> Any:
    """Numbers to six digits, which is more than measuring gives: sums are of rounded numbers, so that what is measured
    as 1 for all answers comes out of them as 0.9999999998.

    Args:
        values (`np.ndarray`): of at least 0, or NaN.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        places = np.minimum(5 - np.floor(np.log10(values)), 300)  # beyond, powers of ten overflow
        rounded = np.where(places >= 0, np.rint(values * 10**places) / 10**places, np.rint(values))
    return np.where(values > 0, rounded, values)


def _without(experts: Sequence[str], table: Any) -> frozenset[str]:
    """The experts that a table of costs or seconds, `(E,)` or `(D, E)`, says nothing of."""
    unknown = np.isnan(table) if table.ndim == 1 else np.isnan(table).any(axis=0)
    return frozenset(name for name, missing in zip(experts, unknown.tolist(), strict=True) if missing)


_MOST = {  # of each number of a policy; infinity times a cost of 0 is no number
    **dict.fromkeys(("min_score", "min_familiarity", "second_below", "explore_loss"), 1.0),
    **dict.fromkeys(("cost_weight", "latency_weight", "stickiness"), sys.float_info.max),
}
_RANGES = {
    **dict.fromkeys(("min_score", "min_familiarity", "second_below"), "is a probability, between 0 and 1;"),
    "explore_loss": "is a score, between 0 and 1;",
    **dict.fromkeys(("cost_weight", "latency_weight", "stickiness"), "must be a number of at least 0,"),
}


class Policy(NamedTuple):
    """
    How a call chooses among experts.

    Args:
        experts (`Sequence[str]`, *optional*): those that may be chosen; all by default.
        cost_weight (`float`): score per unit of cost that an expert must gain to be worth it.
        latency_weight (`float`): score per second, likewise.
        min_score (`float`): below it the fallback answers, or none.
        min_familiarity (`float`): below it likewise.
        fallback_expert (`str`, *optional*): who answers below either; by default nobody.
        stickiness (`float`): by how much another expert must lead to take over a conversation.
        top_n (`int`, *optional*): how many experts the ranking lists; all by default.
        second_below (`float`): below it a second opinion is asked; by default never.
        explore_loss (`float`): what a choice may be expected to lose, of score less weighted cost, for learning of
            others than the best; by default nothing.
    """

    experts: Sequence[str] | None = None
    cost_weight: float = 0.0
    latency_weight: float = 0.0
    min_score: float = 0.0
    min_familiarity: float = 0.0
    fallback_expert: str | None = None
    stickiness: float = 0.0
    top_n: int | None = None
    second_below: float = 0.0
    explore_loss: float = 0.0

    def check(self, panel: Panel) -> None:
        """Checks the policy against a router's experts.

        Raises:
            ValueError: a field is out of range, or names an expert that does not exist or has no cost.
        """
        allowed = panel.experts if self.experts is None else self.experts
        if isinstance(allowed, str) or not allowed:
            raise ValueError(f"`experts` must list at least one of {sorted(panel.experts)}, got {self.experts!r}.")
        for name in (*(self.experts or ()), *([] if self.fallback_expert is None else [self.fallback_expert])):
            if name not in panel.experts:
                raise ValueError(f"There is no expert {name!r}; this router's experts are {sorted(panel.experts)}.")
        for field, most in _MOST.items():
            value = getattr(self, field)
            # What Python's own numbers are is known at once; `Real` is asked of others, such as NumPy's.
            if type(value) not in (float, int) and not isinstance(value, Real):
                raise ValueError(f"`{field}` must be a number, got {value!r}.")
            if not 0 <= value <= most:
                raise ValueError(f"`{field}` {_RANGES[field]} got {value!r}.")
        if self.top_n is not None and (not isinstance(self.top_n, Integral) or self.top_n is True or self.top_n < 1):
            raise ValueError(f"`top_n` must be a whole number of at least 1, got {self.top_n!r}.")
        if self.cost_weight > 0 and (missing := panel.lacking(panel.unpriced, allowed)):
            raise ValueError(
                f"`cost_weight` needs a `cost` in the spec of every expert that answers, or outcomes that tell it;"
                f" {missing} have none."
            )
        if self.latency_weight > 0 and (missing := panel.lacking(panel.untimed, allowed)):
            raise ValueError(
                f"`latency_weight` needs outcomes that tell the seconds of every expert; {missing} have none."
            )

    def decide(
        self,
        p: torch.Tensor,
        panel: Panel,
        turns: Sequence[int],
        explain: bool = False,
        draw: np.random.Generator | None = None,
    ) -> list[Record]:
        """Chooses an expert for each prompt.

        Args:
            p (`torch.Tensor` of shape `(sum of turns, D)`): probabilities, a row a turn of a conversation.
            panel ([`Panel`]): of the domains and experts.
            turns (`Sequence[int]`): rows of each prompt; more than one only where stickiness needs the turns before.
            explain (`bool`): tell all domains, and which pairs decided.
            draw (`np.random.Generator`, *optional*): what explores; without it, or where a conversation's turns before
                count, none does.

        Returns:
            `list[Record]`: for each prompt `expert`, its `score`, the `ranking`, `fallback` where the score was below
            the minimum, and `domains` where they are told. The ranking is by score less weighted cost and seconds.
        """
        self.check(panel)
        p, panel = self._among(p, panel)
        scores = p if panel.scores is None else p @ panel.scores
        worth = scores
        if self.cost_weight > 0:
            worth = worth - self.cost_weight * _by_domain(p, panel.costs)
        if self.latency_weight > 0 and panel.seconds is not None:
            worth = worth - self.latency_weight * _by_domain(p, panel.seconds)
        if panel.mute and worth is not scores:
            worth = worth.where(~worth.isnan(), -math.inf)  # of what is not known of experts that only route
        order = _ranks(worth.numpy(), self.top_n)
        best: list[int] = order[:, 0].tolist()
        if len(p) == len(turns):
            rows = zip(order.tolist(), _in_order(scores.numpy(), order), strict=True)
            records = [self._record(panel.experts, ranks[0], values[0], ranks, values) for ranks, values in rows]
            if self.explore_loss > 0 and draw is not None and panel.errors is not None:
                best = self._explore(records, best, worth.numpy(), scores.numpy(), _error_of(p, panel), panel, draw)
        else:
            best = self._follow(worth, best, turns)
            last = torch.tensor(turns).cumsum(0) - 1
            p, scores, order = p[last], scores[last], order[last.numpy()]
            of_best = scores.gather(1, torch.tensor(best).unsqueeze(1)).squeeze(1)
            fields = of_best.tolist(), order.tolist(), _in_order(scores.numpy(), order)
            records = [self._record(panel.experts, *row) for row in zip(best, *fields, strict=True)]
        if panel.told is not None:
            _add_measured(records, panel.told.expected(p.numpy()), order)
        if panel.scores is not None or explain:
            _add_domains(records, p.numpy(), panel, None if explain else _DOMAINS_TOLD)
        if explain and panel.scores is not None:
            _add_pairs(records, p, panel, best)
        return records

    def unsure(self, p: torch.Tensor, panel: Panel) -> torch.Tensor:
        """Which rows of `p`, `(rows, D)`, give no domain that counts a probability of `second_below`."""
        return self._among(p, panel)[0].amax(dim=1) < self.second_below

    def judge_familiarity(self, record: Record, familiarity: float) -> None:
        """Notes in a record how familiar its prompt is, and sends it to the fallback where that is too little."""
        record["familiarity"] = familiarity
        if familiarity < self.min_familiarity:
            record["expert"], record["fallback"] = self.fallback_expert, True
            record.pop("explored", None)

    def candidates(self, record: Record) -> list[Ranked]:
        """Who may answer, one after the other where those before fail: the chosen expert, those of the ranking that
        score at least the minimum, then the fallback. Where the chosen one is the fallback, nobody else.
        """
        if record["expert"] is None:
            return []
        listed = {entry["expert"]: entry["score"] for entry in record["ranking"]}
        made = {record["expert"]: record["score"]}
        if "fallback" not in record:
            for name, score in listed.items():
                if score >= self.min_score:
                    made.setdefault(name, score)
        if self.fallback_expert is not None:
            made.setdefault(self.fallback_expert, listed.get(self.fallback_expert, record["score"]))
        return [{"expert": name, "score": score} for name, score in made.items()]

    def _among(self, p: torch.Tensor, panel: Panel) -> tuple[torch.Tensor, Panel]:
        """Probabilities of the domains that count, and the panel of the experts that may be chosen."""
        panel, domains = panel.among(self.experts)
        if domains is None or panel.outcomes is not None:
            return p, panel
        p = p[:, domains]
        return p / p.sum(dim=1, keepdim=True), panel

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

    def _explore(
        self,
        records: list[Record],
        best: list[int],
        worth: Any,
        scores: Any,
        error: Any,
        panel: Panel,
        draw: np.random.Generator,
    ) -> list[int]:
        """Sends some prompts to others than the best, and says so in their records; who answers each then."""
        may = (scores >= self.min_score) & np.array([name not in panel.mute for name in panel.experts])
        found = explored(worth, error, self.explore_loss, may, draw).tolist()
        chosen = [old if "fallback" in record else new for record, old, new in zip(records, best, found, strict=True)]
        for row, (record, expert) in enumerate(zip(records, chosen, strict=True)):
            if expert != best[row]:
                record["expert"], record["score"] = panel.experts[expert], float(scores[row, expert])
                record["explored"] = True
        return chosen

    def _record(self, names: Sequence[str], chosen: int, score: float, ranks: list[int], scores: list[float]) -> Record:
        ranking: list[Ranked] = [{"expert": names[i], "score": value} for i, value in zip(ranks, scores, strict=True)]
        if score < self.min_score:
            return {"expert": self.fallback_expert, "score": score, "ranking": ranking, "fallback": True}
        return {"expert": names[chosen], "score": score, "ranking": ranking}


def explored(worth: Any, error: Any, explore_loss: float, may: Any, draw: np.random.Generator) -> Any:
    """Choices by Thompson sampling among experts that are expected to lose little.

    Args:
        worth (`np.ndarray` of shape `(N, E)`): expected score, less weighted cost and seconds.
        error (`np.ndarray` of shape `(N, E)`): its standard error.
        explore_loss (`float`): how much less than the best an expert may be worth.
        may (`np.ndarray` of shape `(N, E)` or `(E,)`): who may be chosen beside the best.
        draw (`np.random.Generator`): of the samples.

    Returns:
        `np.ndarray` of shape `(N,)`: indices of experts; the best where nobody else may.
    """
    lead = worth.max(axis=1, keepdims=True) - worth
    drawn = worth + error * draw.standard_normal(worth.shape)
    return np.where(((lead <= explore_loss) & may) | (lead == 0), drawn, -np.inf).argmax(axis=1)


def _error_of(p: torch.Tensor, panel: Panel) -> Any:
    """Standard errors of what experts are expected to score, `(rows, E)`: those of the pairs are independent."""
    assert panel.errors is not None
    return np.sqrt((p.numpy() ** 2) @ (panel.errors.numpy() ** 2))


def _by_domain(p: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """What is expected of each expert, `(rows, E)` or `(E,)`; NaN where a table says nothing."""
    return table if table.ndim == 1 else p @ table


def _add_measured(records: list[Record], told: Any, order: Any) -> None:
    """Adds to each entry of the rankings what its expert is expected to cost and to take, where that was measured.

    Args:
        records (`list[Record]`): N of them.
        told (`np.ndarray` of shape `(N, 2, E)`): of [`Measured.expected`].
        order (`np.ndarray` of shape `(N, top_n)`): the experts of each ranking.
    """
    rows = told[np.arange(len(told))[:, None], :, order].tolist()
    for record, row in zip(records, rows, strict=True):
        for entry, (cost, seconds) in zip(record["ranking"], row, strict=True):
            if not math.isnan(cost):
                entry["cost"] = cost
            if not math.isnan(seconds):
                entry["seconds"] = seconds


def _add_domains(records: list[Record], p: Any, panel: Panel, most: int | None) -> None:
    """Adds to each record the domains, likeliest first."""
    rows = p.tolist()
    if len(rows) == 1:  # sorting a list is quicker then, and comes to the same
        places = [sorted(range(len(panel.domains)), key=[-score for score in rows[0]].__getitem__)[:most]]
    else:
        places = np.argsort(-p, axis=1, kind="stable")[:, :most].tolist()
    for record, row, indices in zip(records, rows, places, strict=True):
        record["domains"] = [{"domain": panel.domains[index], "score": row[index]} for index in indices]


def _add_pairs(records: list[Record], p: torch.Tensor, panel: Panel, chosen: list[int]) -> None:
    """Adds to each record what the chosen expert's score is made of, the largest share first."""
    assert panel.scores is not None
    for record, row, expert in zip(records, p, chosen, strict=True):
        scores = panel.scores[:, expert]
        shares = row * scores
        outcomes = torch.zeros_like(scores) if panel.outcomes is None else panel.outcomes[:, expert]
        record["pairs"] = [
            {
                "domain": panel.domains[place],
                "score": float(scores[place]),
                "share": float(shares[place]),
                "outcomes": round(float(outcomes[place]), 3),
            }
            for place in shares.argsort(descending=True, stable=True).tolist()
        ]


def _ranks(worth: Any, top_n: int | None) -> Any:
    """Indices of the largest values of each row, largest first; of equal ones the smaller index first."""
    if top_n is None or top_n >= worth.shape[1]:
        return (-worth).argsort(axis=1, kind="stable")
    top = torch.from_numpy(worth).topk(top_n, dim=1).indices.sort(dim=1).values.numpy()
    return np.take_along_axis(top, (-np.take_along_axis(worth, top, axis=1)).argsort(axis=1, kind="stable"), axis=1)


def _in_order(values: Any, order: Any) -> list[list[float]]:
    """The values of each row in an order of its own."""
    return values[np.arange(len(order))[:, None], order].tolist()  # type: ignore[no-any-return]
