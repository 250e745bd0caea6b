"""Edits of a router's set of experts. Each makes new specs and new statistics; the old ones stay as they are."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .batch_ir3de import Prompts
from .prompts_ir3de import token_ids_of
from .specs_ir3de import ExpertSpec, check_expert, check_expert_name
from .statistics_ir3de import DomainStatistics, FeatureSpace, StatisticsCollector

_TEXTS = 1024  # that are tokenized at a time
_CHUNK = 8192  # rows of the vocabulary that are measured at a time


class Experts(NamedTuple):
    """
    What a router is made of.

    Args:
        specs (`dict[str, ExpertSpec]`): of each expert, by its name.
        statistics (`dict[str, DomainStatistics]`): of each expert's domain.
        second (`dict[str, DomainStatistics]`): of those that the second opinion knows, if there is one.
    """

    specs: dict[str, ExpertSpec]
    statistics: dict[str, DomainStatistics]
    second: dict[str, DomainStatistics]

    @property
    def digest(self) -> str:
        """Names the set of contributions, and with it W: 16 hexadecimal digits."""
        ids = sorted((name, *sorted(domain.contributions)) for name, domain in self.statistics.items())
        return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]

    def with_expert(self, spec: Any, statistics: DomainStatistics, second: DomainStatistics | None = None) -> Experts:
        """These experts and a new one, of which the second opinion learns what is in `second`.

        Raises:
            ValueError: the spec is malformed, its name is taken, or a contribution is here already.
        """
        spec = check_expert({"name": spec} if isinstance(spec, str) else spec)
        name = spec["name"]
        taken = [other for other in self.specs if other.lower() == name.lower()]
        if taken:
            raise ValueError(
                f"There is an expert {taken[0]!r} already. Give {name!r} another name, add to its domain with `merge`,"
                " or put it in the other's place with `replace_expert`."
            )
        for other, domain in self.statistics.items():
            _check_disjoint(other, domain, statistics)
        known = self._learned(name, second)
        return Experts({**self.specs, name: spec}, {**self.statistics, name: statistics}, known)

    def _learned(self, name: str, second: DomainStatistics | None) -> dict[str, DomainStatistics]:
        """What the second opinion knows once it has learned of an expert."""
        if second is None:
            return self.second
        return {**self.second, name: self.second[name] | second if name in self.second else second}

    def without(self, name: str) -> Experts:
        """These experts but one.

        Raises:
            ValueError: there is no such expert.
        """
        if name not in self.specs:
            raise ValueError(f"There is no expert {name!r} among {sorted(self.specs)}.")
        rest = [other for other in self.specs if other != name]
        second = {other: domain for other, domain in self.second.items() if other != name}
        specs = {other: self.specs[other] for other in rest}
        return Experts(specs, {other: self.statistics[other] for other in rest}, second)

    def union(self, other: Experts) -> Experts:
        """These experts and another router's; domains that both have get both's contributions, and keep their spec.

        What the other's second opinion knows joins too.

        Raises:
            ValueError: the other brings nothing new, or a contribution that is here under another name.
        """
        merged = self
        for name, domain in sorted(other.statistics.items()):
            second = other.second.get(name)
            if name not in self.specs:
                merged = merged.with_expert(other.specs.get(name, {"name": name}), domain, second)
                continue
            for mine, here in self.statistics.items():
                if mine != name:
                    _check_disjoint(mine, here, domain)
            statistics = {**merged.statistics, name: merged.statistics[name] | domain}
            merged = Experts(merged.specs, statistics, merged._learned(name, second))
        if merged.digest == self.digest and _contributions(merged.second) == _contributions(self.second):
            raise ValueError(
                f"Nothing to merge: every contribution to {', '.join(sorted(other.statistics))} is part of the router"
                " already."
            )
        return merged


def _contributions(statistics: Mapping[str, DomainStatistics]) -> dict[str, set[str]]:
    """The ids of what each domain is made of."""
    return {name: set(domain.contributions) for name, domain in statistics.items()}


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
            check_expert_name(name)
        return Experts({}, {name: read_statistics(part, name, space) for name, part in source.items()}, {})
    if isinstance(source, (str, os.PathLike)):
        if Path(source).suffix == ".safetensors":
            return read_experts({Path(source).stem: source}, space, load)
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
    return Experts(specs, dict(router.statistics), {} if second is None else dict(second.statistics))


def pull(statistics: Mapping[str, DomainStatistics], balance: bool) -> dict[str, float]:
    """Each domain's share of A's trace over the token rows: how strongly it pulls on the router.

    With `balance` rows do not matter, so no domain gains by claiming many; 1 / D each is even.
    """
    traces = {}
    for name, domain in statistics.items():
        diagonal = domain.diagonal("tokens")
        traces[name] = float(diagonal.sum() / diagonal[-1]) if balance else float(diagonal.sum())
    return {name: trace / sum(traces.values()) for name, trace in traces.items()}


def union_of(sources: Iterable[Experts], first: Experts) -> Experts:
    """The union of all, each of which must bring something new."""
    for source in sources:
        first = first.union(source)
    return first


class RouterEdits:
    """The edits of a router: each checks everything, solves W anew, and only then changes the router.

    Its second opinion, if any, follows: it forgets whom the router forgets, and learns what a merged router's knows.
    Of an expert that joins with texts or statistics it knows nothing until its own `add_expert` is called.
    """

    config: Any
    embed_tokens: Any
    tokenizer: Any
    second_opinion: Any

    @property
    def statistics(self) -> dict[str, DomainStatistics]:
        """The statistics of each domain."""
        raise NotImplementedError

    def collector(self, device: str | torch.device = "cpu") -> StatisticsCollector:
        """A collector of statistics in the router's feature space."""
        raise NotImplementedError

    def _become(self, config: Any, statistics: dict[str, DomainStatistics]) -> None:
        raise NotImplementedError

    def add_expert(self, spec: str | ExpertSpec, texts: Iterable[str] | None = None, statistics: Any = None) -> None:
        """Adds an expert; the others' text is not needed, and how much there was does not matter.

        Args:
            spec (`str` or [`ExpertSpec`]): its name, or its spec; see [`ExpertSpec`].
            texts (`Iterable[str]`, *optional*): text of its domain.
            statistics (`DomainStatistics`, path, or a list of these, *optional*): of its domain, instead of texts.

        Raises:
            ValueError: spec or statistics are malformed, the name is taken, or a contribution is here already. The
                router is as before.
        """
        name = spec if isinstance(spec, str) else str(spec.get("name"))
        self._edit(experts_of(self).with_expert(spec, self._new(name, texts, statistics)))

    def remove_expert(self, name: str) -> None:
        """Removes an expert: the router is then, bit for bit, the one that never had it.

        Raises:
            ValueError: there is no such expert, it is the last, or it is the fallback. The router is as before.
        """
        rest = experts_of(self).without(name)
        if not rest.specs:
            raise ValueError(f"{name!r} is the last expert, and a router needs one. Add another before removing it.")
        self._edit(rest)

    def replace_expert(
        self, name: str, spec: str | ExpertSpec, texts: Iterable[str] | None = None, statistics: Any = None
    ) -> None:
        """Puts an expert in another's place.

        Args:
            name (`str`): of the expert that leaves.
            spec (`str` or [`ExpertSpec`]): of the one that comes, under the same name or a new one.
            texts (`Iterable[str]`, *optional*): text of its domain. Without texts and statistics it takes over those of
                the expert that leaves.
            statistics (`DomainStatistics`, path, or a list of these, *optional*): of its domain.

        Raises:
            ValueError: as in [`IR3DEModel.add_expert`] and [`IR3DEModel.remove_expert`]. The router is as before.
        """
        here = experts_of(self)
        rest, second = here.without(name), None
        if texts is None and statistics is None:
            statistics, second = here.statistics[name], here.second.get(name)
        new = name if isinstance(spec, str) else str(spec.get("name"))
        self._edit(rest.with_expert(spec, self._new(new, texts, statistics), second))

    def merge(self, *sources: Any) -> None:
        """Merges other routers or statistics: new domains become experts, known ones gain contributions.

        Args:
            sources (`Any`): each a router, the folder or Hub id of one, a statistics file that is named after its
                domain, or a mapping of domains to statistics.

        Raises:
            ValueError: a source is malformed, of another feature space, or brings nothing new. The router is as before.
        """
        load = type(self).from_pretrained  # type: ignore[attr-defined]
        second = None if self.second_opinion is None else self.second_opinion.space
        self._edit(union_of((read_experts(source, self.space, load, second) for source in sources), experts_of(self)))

    def tokenize(self, texts: list[str]) -> Prompts:
        """Texts as the router reads them; those without a token are left out."""
        return Prompts.of([ids for ids in token_ids_of(self.tokenizer, texts, self.config.max_length) if ids])

    def _new(self, name: str, texts: Iterable[str] | None, statistics: Any) -> DomainStatistics:
        """The statistics of a domain that is to join, from either source, checked as a stranger's."""
        if (texts is None) == (statistics is None):
            raise ValueError(f"Expert {name!r} needs either `texts` of its domain or `statistics` of it.")
        if texts is None:
            return read_statistics(statistics, name, self.space)
        collector, rest = self.collector(), iter([texts] if isinstance(texts, str) else texts)
        while batch := list(itertools.islice(rest, _TEXTS)):
            collector.add(self.tokenize(batch))
        if not int(collector.counts.sum()):
            raise ValueError(f"The texts of {name!r} have no tokens: give text of the domain.")
        return collector.statistics

    @property
    def space(self) -> FeatureSpace:
        """What the router's statistics lie in."""
        return self.config.space  # type: ignore[no-any-return]

    def _edit(self, experts: Experts) -> None:
        """Takes on other experts, once everything that is new has been checked."""
        before = experts_of(self)
        known = {key for domain in before.statistics.values() for key in domain.contributions}
        new = {name: domain.only(domain.contributions.keys() - known) for name, domain in experts.statistics.items()}
        longest = self._longest() if any(domain.contributions for domain in new.values()) else {}
        for name, domain in new.items():
            domain.check(name, longest)
        config = copy.deepcopy(self.config)
        config.set_experts(list(experts.specs.values()))
        config.check()
        if config.evaluation or config.calibration:
            measured_on = config.measured_on or before.digest
            config.measured_on = None if measured_on == experts.digest else measured_on
        second = self.second_opinion and self.second_opinion.having(experts.second)
        self._become(config, experts.statistics)
        self.second_opinion = second

    def _longest(self) -> dict[str, float]:
        """The largest squared length of a row of each kind; a prompt's is at most its tokens' sum."""
        token = 1.0
        if self.config.feature_map == "identity":
            parts = self.embed_tokens.weight.detach().split(_CHUNK)
            token = max(float(rows.double().square().sum(dim=1).max()) for rows in parts)
        return {"tokens": token, "prompts": token * self.config.max_length}
