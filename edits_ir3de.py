"""Edits of a router's domains, experts and outcomes. Each makes new values; the old ones stay as they are."""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .batch_ir3de import Prompts
from .configuration_ir3de import IR3DEConfig
from .displacement_ir3de import Lost
from .names_ir3de import alike, check_name, name_of_file
from .outcome_rows_ir3de import Outcome, latest_day, read_outcomes
from .outcomes_ir3de import Ledger, OutcomesCollector, shared, whole
from .specs_ir3de import ExpertSpec, check_expert, nearest_name, served
from .statistics_ir3de import KINDS, DomainStatistics, FeatureSpace, StatisticsCollector

_TEXTS = 1024  # that are tokenized at a time
_MOST_TIMES = 3  # the longest domain's prompts that another's may be as long as
# The shares of one domain's prompts, and of all domains' in the mean, that statistics of others may take by estimate,
# of prompts that W was solved from and of others like them. Where tokens are scored the estimate is higher: it takes
# them to come on their own. That of discriminant analysis tells honest domains from others sooner.
_MOST_TAKEN = {
    "prompts": ((0.20, 0.03), (0.35, 0.05)),
    "tokens": ((0.20, 0.06), (0.35, 0.07)),
    "discriminant": ((0.20, 0.03), (0.18, 0.05)),
}
_CHUNK = 8192  # rows of the vocabulary that are measured at a time


class TakesPrompts(ValueError):
    """What is new would take other domains' prompts; with `own=True` it may."""


class Experts(NamedTuple):
    """
    What a router is made of.

    Args:
        specs (`dict[str, ExpertSpec]`): of each expert, by its name.
        statistics (`dict[str, DomainStatistics]`): of each domain.
        second (`dict[str, DomainStatistics]`): of the domains that the second opinion knows, if there is one.
        outcomes ([`Ledger`]): of the experts.
    """

    specs: dict[str, ExpertSpec]
    statistics: dict[str, DomainStatistics]
    second: dict[str, DomainStatistics]
    outcomes: Ledger = Ledger()

    @property
    def digest(self) -> str:
        """Names the set of contributions, and with it W: 16 hexadecimal digits."""
        ids = sorted((name, *sorted(domain.contributions)) for name, domain in self.statistics.items())
        return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]

    @property
    def keys(self) -> set[str]:
        """Of the contributions to all domains."""
        return {key for domain in self.statistics.values() for key in domain.contributions}

    def with_expert(
        self, spec: Any, statistics: DomainStatistics | None = None, second: DomainStatistics | None = None
    ) -> Experts:
        """These and a new expert; with statistics also the domain of its name.

        Raises:
            ValueError: the spec is malformed, its name is taken, or a contribution is here already.
        """
        spec = check_expert({"name": spec} if isinstance(spec, str) else spec)
        name = spec["name"]
        taken = [other for other in self.specs if alike(other, name)]
        if taken:
            raise ValueError(
                f"There is an expert {taken[0]!r} already. Give {name!r} another name, add to its domain with `merge`,"
                " or put it in the other's place (`replace_expert`, or `ir3de add --replace`)."
            )
        made = self if statistics is None else self.with_domain(name, statistics, second)
        return made._replace(specs={**made.specs, name: spec})

    def with_spec(self, spec: Any) -> Experts:
        """These, of whom one has another spec; its outcomes stay.

        Raises:
            ValueError: the spec is malformed, or there is no such expert.
        """
        spec = check_expert(spec)
        if spec["name"] not in self.specs:
            hint = nearest_name(spec["name"], self.specs)
            raise ValueError(f"There is no expert {spec['name']!r} among {sorted(self.specs)}.{hint}")
        return self._replace(specs={**self.specs, spec["name"]: spec})

    def with_domain(self, name: str, statistics: DomainStatistics, second: DomainStatistics | None = None) -> Experts:
        """These and a new domain, of which the second opinion learns what is in `second`.

        Raises:
            ValueError: the name is taken or cannot be one, or a contribution is here already.
        """
        check_name(name)
        taken = [other for other in self.statistics if alike(other, name)]
        if taken:
            raise ValueError(
                f"There is a domain {taken[0]!r} already: give {name!r} another name, or add to it with `merge`."
            )
        for other, domain in self.statistics.items():
            _check_disjoint(other, domain, statistics)
        return self._replace(statistics={**self.statistics, name: statistics}, second=self._learned(name, second))

    def _learned(self, name: str, second: DomainStatistics | None) -> dict[str, DomainStatistics]:
        """What the second opinion knows once it has learned of a domain."""
        if second is None:
            return self.second
        return {**self.second, name: self.second[name] | second if name in self.second else second}

    def without(self, name: str) -> Experts:
        """These without an expert, its outcomes, and the domain of its name if that concerns no other expert.

        Raises:
            ValueError: there is no such expert.
        """
        if name not in self.specs:
            raise ValueError(f"There is no expert {name!r} among {sorted(self.specs)}.")
        specs = {other: spec for other, spec in self.specs.items() if other != name}
        rest = self._replace(specs=specs, outcomes=self.outcomes.of(specs))
        return rest.without_domain(name) if name in self.statistics and not rest.concerns(name) else rest

    def without_domain(self, name: str) -> Experts:
        """These without a domain, which no expert serves then. Outcomes in it rest, until it is there again.

        Raises:
            ValueError: there is no such domain.
        """
        if name not in self.statistics:
            raise ValueError(f"There is no domain {name!r} among {sorted(self.statistics)}.")
        specs = {other: _without_entry(spec, name) for other, spec in self.specs.items()}
        statistics = {other: domain for other, domain in self.statistics.items() if other != name}
        second = {other: domain for other, domain in self.second.items() if other != name}
        return self._replace(specs=specs, statistics=statistics, second=second)

    def concerns(self, domain: str) -> bool:
        """Whether an expert serves a domain or was judged in it."""
        return any(domain in served(spec) for spec in self.specs.values()) or domain in self.outcomes.domains

    def union(self, other: Experts) -> Experts:
        """These and what another router has: contributions, outcomes and experts; experts of both keep their spec here.

        What the other's second opinion knows joins too.

        Raises:
            ValueError: the other brings nothing new, or a contribution that is here under another name.
        """
        merged = self
        for name, domain in sorted(other.statistics.items()):
            second = other.second.get(name)
            if name not in self.statistics:
                merged = merged.with_domain(name, domain, second)
                continue
            for mine, here in self.statistics.items():
                if mine != name:
                    _check_disjoint(mine, here, domain)
            statistics = {**merged.statistics, name: merged.statistics[name] | domain}
            merged = merged._replace(statistics=statistics, second=merged._learned(name, second))
        for name, spec in sorted(other.specs.items()):
            if name not in self.specs:
                merged = merged.with_expert(spec)
        for name in sorted(other.statistics.keys() - self.statistics.keys()) if not other.specs else ():
            if name not in self.specs:  # of statistics alone: the domain gets an expert that only routes
                merged = merged.with_expert(name)
        merged = merged._replace(outcomes=merged.outcomes | other.outcomes)
        if merged.contents == self.contents:
            raise ValueError(
                f"Nothing to merge: every contribution to {', '.join(sorted(other.statistics))} is part of the router"
                " already."
            )
        return merged

    @property
    def contents(self) -> tuple[object, ...]:
        """What a merge may add to, to compare."""
        second = {name: set(domain.contributions) for name, domain in self.second.items()}
        outcomes = {name: set(parts) for name, parts in self.outcomes.contributions.items()}
        return self.digest, second, outcomes, sorted(self.specs)


def _without_entry(spec: ExpertSpec, domain: str) -> ExpertSpec:
    """A spec that does not name a domain."""
    if domain not in spec.get("domains", ()):
        return spec
    changed = spec.copy()
    changed["domains"] = [other for other in spec["domains"] if other != domain]
    return changed


def _check_disjoint(name: str, here: DomainStatistics, new: DomainStatistics) -> None:
    """Raises ValueError where a contribution is part of a domain already."""
    twice = sorted(here.contributions.keys() & new.contributions.keys())
    if twice:
        raise ValueError(f"Contribution {', '.join(twice)} is part of {name!r} already: it would count twice.")


def read_statistics(source: Any, name: str, space: FeatureSpace) -> DomainStatistics:
    """The statistics of one domain, from memory or from files.

    Args:
        source (`DomainStatistics`, `str`, `os.PathLike`, or a list of these): several add up.
        name (`str`): of the domain, for messages.
        space ([`FeatureSpace`]): that is expected; a file of another one is not read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file is damaged or of another feature space, or a contribution is named twice.
    """
    if isinstance(source, (str, os.PathLike)):
        if not Path(source).is_file():
            raise FileNotFoundError(f"The statistics file {source} is missing: check its path.")
        return DomainStatistics.load(source, space)
    if not isinstance(source, (list, tuple)):
        space.check(f"of {name!r}", source.space)
        return source  # type: ignore[no-any-return]
    if not source:
        raise ValueError(f"There are no statistics of {name!r}: give at least one file.")
    parts = [read_statistics(part, name, space) for part in source]
    union = parts[0]
    for part in parts[1:]:
        _check_disjoint(name, union, part)
        union |= part
    return union


def read_experts(
    source: Any, space: FeatureSpace, load: Callable[[str], Any], second_space: FeatureSpace | None = None
) -> Experts:
    """The experts that a source brings.

    Args:
        source (`Any`): a router; the folder or Hub id of one; a statistics file named after its domain; or a mapping of
            domains to what [`read_statistics`] takes.
        space ([`FeatureSpace`]): that is expected.
        load (`Callable`): makes a router of a folder or Hub id.
        second_space ([`FeatureSpace`], *optional*): of the second opinion, if there is one; a source's of another
            encoder stays behind.
    """
    if isinstance(source, Mapping):
        for name in source:
            check_name(name)
        return Experts({}, {name: read_statistics(part, name, space) for name, part in source.items()}, {})
    if isinstance(source, (str, os.PathLike)):
        if Path(source).suffix == ".safetensors":
            return read_experts({name_of_file(Path(source).stem): source}, space, load)
        source = load(str(source))
    experts = experts_of(source, with_second=second_space is not None)
    for name, domain in experts.statistics.items():
        space.check(f"of {name!r}", domain.space)
    second = {name: domain for name, domain in experts.second.items() if domain.space == second_space}
    return experts._replace(second=second)


def experts_of(router: Any, with_second: bool = True) -> Experts:
    """What a router is made of, with what its second opinion knows of its experts or without."""
    specs = {spec["name"]: spec for spec in router.config.experts}
    second = router.second_opinion if with_second else None
    known = {} if second is None else dict(second.statistics)
    return Experts(specs, dict(router.statistics), known, router.outcomes)


def pull(statistics: Mapping[str, DomainStatistics], balance: bool) -> dict[str, float]:
    """Each domain's share of A's trace over the token rows: how strongly it pulls on the router.

    With `balance` rows do not matter, so no domain gains by claiming many; 1 / D each is even.
    """
    traces = {}
    for name, domain in statistics.items():
        diagonal = domain.diagonal("tokens")
        traces[name] = float(diagonal.sum() / diagonal[-1]) if balance else float(diagonal.sum())
    return {name: trace / sum(traces.values()) for name, trace in traces.items()}


def statistics_of(
    name: str, texts: Iterable[str], collector: StatisticsCollector, tokenize: Callable[[list[str]], Prompts]
) -> DomainStatistics:
    """The statistics of a domain's texts, which are read in a stream.

    Raises:
        ValueError: the texts have no tokens.
    """
    rest = iter([texts] if isinstance(texts, str) else texts)
    while batch := list(itertools.islice(rest, _TEXTS)):
        collector.add(tokenize(batch))
    if not int(collector.counts.sum()):
        raise ValueError(f"The texts of {name!r} have no tokens: give text of the domain.")
    return collector.statistics


def check_new(
    before: Experts, after: Experts, config: IR3DEConfig, embeddings: torch.Tensor, own: bool = False
) -> bool:
    """Whether an edit brings contributions. Raises ValueError where one cannot be what it claims, and TakesPrompts
    where its prompts are too long.

    Args:
        before, after ([`Experts`]): without and with what is new.
        config ([`IR3DEConfig`]): of the router.
        embeddings (`torch.Tensor` of shape `(V, h)`): its token embeddings.
        own (`bool`): whether what is new was collected here, of text that is at hand, and may be as long as it is.
    """
    known = before.keys
    new = {name: domain.only(domain.contributions.keys() - known) for name, domain in after.statistics.items()}
    longest = _longest_rows(config, embeddings) if any(domain.contributions for domain in new.values()) else {}
    counted = sum(domain.rows(kind) for domain in after.statistics.values() for kind in KINDS)
    if known != after.keys and counted > 2**53:
        raise ValueError(
            f"The contributions have {counted:.4g} rows together, more than can be counted. Leave some out."
        )
    most = _MOST_TIMES * max(map(prompt_length, before.statistics.values()), default=math.inf)
    for name, domain in new.items():
        domain.check(name, longest)
        for key in domain.contributions:
            length = prompt_length(domain.only({key}))
            if before.statistics and not own and length > most:
                raise TakesPrompts(
                    f"Contribution {key} to {name!r} has prompts of a mean squared length of {length:.4g}, more than"
                    f" {_MOST_TIMES} times that of any domain here ({most / _MOST_TIMES:.4g} at most): it would take"
                    " other domains' prompts. Have it collected of texts about as long as those of the others."
                )
    return any(domain.contributions for domain in new.values())


def check_displaced(lost: Mapping[str, Lost], way: str) -> None:
    """Raises TakesPrompts where new statistics would take too many prompts of the domains that are here.

    Args:
        lost (`Mapping[str, Lost]`): what each domain loses, as [`displaced`] estimates it.
        way (`str`): of the scorer, see [`Scorer`].
    """
    takers = {name: of_domain.to for name, of_domain in lost.items()}
    seen, unseen = _MOST_TAKEN[way]
    _check_taken({name: of_domain.seen for name, of_domain in lost.items()}, takers, *seen)
    _check_taken({name: of_domain.unseen for name, of_domain in lost.items()}, takers, *unseen)


def _check_taken(
    shares: Mapping[str, float], takers: Mapping[str, str], most_of_one: float, most_of_all: float
) -> None:
    """Raises TakesPrompts where too large a share of prompts is taken, of one domain or in the mean."""
    if not shares:
        return
    name, mean = max(shares, key=shares.__getitem__), sum(shares.values()) / len(shares)
    one_is_well, all_are_well = shares[name] <= most_of_one, mean <= most_of_all  # NaN is too many
    if not (one_is_well and all_are_well):
        of_one = f"{shares[name]:.0%} of the prompts of {name!r}, where {most_of_one:.0%} are allowed"
        of_all = f"{mean:.1%} of the prompts of all domains, where {most_of_all:.0%} are allowed"
        failed, other = (of_all, of_one) if one_is_well else (of_one, of_all)
        raise TakesPrompts(
            f"The new statistics would take an estimated {failed}; and {other}. Most of what {name!r} loses would go to"
            f" {takers[name]!r}. They resemble domains that are here, or mix what these keep apart. Add them to the"
            " domain that they belong to; or, where you know their text and want this, say so with `own=True`, or"
            " --own of the command."
        )


def prompt_length(domain: DomainStatistics) -> float:
    """The mean squared length of a domain's prompt rows, without the column of ones: how strongly each pulls."""
    diagonal = domain.diagonal("prompts")
    return float(diagonal[:-1].sum() / diagonal[-1])


def _longest_rows(config: IR3DEConfig, embeddings: torch.Tensor) -> dict[str, float]:
    """The largest squared length of a row of each kind; a prompt's is at most its tokens' sum."""
    token = 1.0
    if config.feature_map == "identity":
        token = max(float(rows.double().square().sum(dim=1).max()) for rows in embeddings.split(_CHUNK))
    return {"tokens": token, "prompts": token * config.max_length}


def edited(config: IR3DEConfig, before: Experts, after: Experts, own: bool = False) -> IR3DEConfig:
    """A copy of a router's config for other experts. It remembers on which contributions the router was measured, until
    they are all there is again, and which ones of others joined since.

    Raises:
        ValueError: the config does not suit these experts, as when its fallback has left.
    """
    config = copy.deepcopy(config)
    config.set_experts(list(after.specs.values()), sorted(after.statistics))
    config.judged = sorted(after.outcomes.contributions) or None
    config.check()
    if config.evaluation or config.calibration:
        measured_on = config.measured_on or before.digest
        config.measured_on = None if measured_on == after.digest else measured_on
        new = set() if own else after.keys - before.keys
        config.joined = sorted(after.keys & {*(config.joined or ()), *new}) or None
    return config


def count_outcomes(
    source: Any,
    where: Mapping[str, str] | None,
    experts: Collection[str],
    domains: Sequence[str],
    recognise: Callable[[list[str]], torch.Tensor],
) -> Ledger:
    """The ledger of outcomes that come as rows, in a stream.

    Args:
        source (`Any`): rows, as [`read_outcomes`] takes them.
        where (`Mapping[str, str]`, *optional*): only rows with these values.
        experts (`Collection[str]`): that outcomes may be of.
        domains (`Sequence[str]`): D names.
        recognise (`Callable`): texts to probabilities of the domains, `(texts, D)`, where rows do not say the domain.

    Raises:
        ValueError: a row is malformed, names no expert or domain of the router, or there are no rows.
    """
    collector, columns = OutcomesCollector(domains), {name: index for index, name in enumerate(domains)}
    rows = read_outcomes(source, where)
    while batch := list(itertools.islice(rows, _TEXTS)):
        for outcomes in batch:
            _check_known(outcomes, experts, columns)
        weights = np.zeros((len(batch), len(domains)), dtype=np.int64)
        known = [row for row, outcomes in enumerate(batch) if outcomes[0].domain is not None]
        unknown = [row for row, outcomes in enumerate(batch) if outcomes[0].domain is None]
        if known:
            weights[known] = whole([columns[str(batch[row][0].domain)] for row in known], len(domains))
        if unknown:
            weights[unknown] = shared(recognise([batch[row][0].text for row in unknown]).numpy())
        flat = [outcome for outcomes in batch for outcome in outcomes]
        collector.add(flat, weights.repeat([len(outcomes) for outcomes in batch], axis=0))
    if not collector.number:
        raise ValueError(f"There are no outcomes in {str(source)[:200]!r}{f' where {dict(where)}' if where else ''}.")
    return collector.ledger


def check_days(before: Ledger, after: Ledger) -> None:
    """Raises ValueError where outcomes that are new are of a day that has not begun anywhere: from there on all others
    would fade, where a router has a half-life.
    """
    latest = latest_day()
    ahead = sorted(day for day in after.by_day().keys() - before.by_day().keys() if day > latest)
    if ahead:
        raise ValueError(f"Outcomes are dated {ahead[-1]}, which is yet to come: mend their `day`, or the clock here.")


def feedback_of(record: Mapping[str, Any], score: float, cost: float | None, seconds: float | None) -> Ledger:
    """The ledger of one answer, from the record of its prompt.

    Raises:
        ValueError: the record does not tell what was recognised, nobody answered, or a number is out of range.
    """
    recognised = record.get("recognised")
    if not recognised:
        raise ValueError("This record does not tell what was recognised: route the prompt with `recognised=True`.")
    if record["expert"] is None or record.get("generated_text", "") is None:
        raise ValueError("Nobody answered this prompt, so there is nothing to score.")
    today = datetime.now(UTC).date().isoformat()
    outcome = Outcome(record["id"], record["expert"], score, cost, seconds, day=today)
    outcome.check()
    collector = OutcomesCollector([*recognised])
    collector.add([outcome], np.array([[*recognised.values()]], dtype=np.int64))
    return collector.ledger


def _check_known(outcomes: Iterable[Outcome], experts: Collection[str], domains: Collection[str]) -> None:
    """Raises ValueError where an outcome is of an expert or a domain that the router does not have."""
    for outcome in outcomes:
        if outcome.expert not in experts:
            raise ValueError(
                f"There is no expert {outcome.expert!r} that outcomes could be of; this router's are"
                f" {sorted(experts)}.{nearest_name(outcome.expert, experts)} Add it first (`add_expert`, or"
                " `ir3de experts --add`)."
            )
        if outcome.domain is not None and outcome.domain not in domains:
            raise ValueError(
                f"There is no domain {outcome.domain!r} that outcomes could be in; this router's are"
                f" {sorted(domains)}.{nearest_name(outcome.domain, domains)} Add it first (`add_domain`), or leave"
                " `domain` out of the rows, so that they count by what the router recognises."
            )
