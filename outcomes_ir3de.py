"""The ledger of outcomes: how well experts did on prompts, as a few sums for each pair of domain and expert.

An *outcome* is what an expert did on one prompt: a score from 0 to 1 and, where they are known, its cost, seconds and
tokens. Where the prompt's domain is known the outcome counts there; else it counts in every domain d by p(d | x).

Sums are counted in whole numbers of a small unit, so that they add up exactly: in whatever order outcomes come, from
one file or from seven, added and removed again, the totals are the same to the last bit. A row's weights add up to
exactly one. What an outcome adds to a sum is rounded to the nearest unit, so that a mean of n outcomes is off by at
most half a unit times the number of domains that they were shared among:

| sum | unit | most that a pair may hold |
|---|---|---|
| outcomes, score, score squared, seconds, tokens | 2^-20, about one millionth | 8.8e12 |
| cost | 2^-32, about 2.3e-10 | 2.1e9 |

Outcomes that were added together are one *contribution*, named by a hash over them that does not care for their order.
An expert's outcomes are a union of contributions, as a domain's statistics are; what is part already is noticed.

A contribution may be of a day. With a *half-life* of H days, one that is a days older than the newest of the ledger
counts 2^(-a / H) where sums are made for a choice; those without a day are as old as the oldest that have one, but for
a tenth of these, and one of them at least, so that a clock that was wrong once does not make them fade. So time passes
with what is learned: a router that is left alone does not forget. What is kept stays exact and whole.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .names_ir3de import check_name, file_name, name_of_file
from .outcome_rows_ir3de import MEASURES, Outcome, check_day

FORMAT = "ir3de-outcomes-1"
STRENGTH = 10  # outcomes that a prior counts for; chosen on held-out outcomes, see docs/outcomes.md
COLUMNS = ("n", "score", "score_squared", *(f"{part}{name}" for name in MEASURES for part in ("n_", "")))
ONE = 1 << 20  # units that one outcome counts for, and of a score, a second or a token
COST_ONE = 1 << 32  # units of a cost of 1
_UNITS = np.array([COST_ONE if name == "cost" else ONE for name in COLUMNS], dtype=np.float64)
_MOST = 1 << 62  # units of a sum
_SMALL = 1e-2  # outcomes that hold the effect of a domain without any at zero
_MOST_BYTES, _MOST_HEADER = 1 << 28, 1 << 24  # of a file
_KEY = re.compile(r"[0-9a-f]{32}")
_ROUND = 1 << 128  # where names, which add up, start again


class Contribution(NamedTuple):
    """
    Sums over one expert's outcomes that were added together.

    Args:
        domains (`tuple[str, ...]`): those in which they count, sorted.
        sums (`np.ndarray` of shape `(domains, 9)`): of `COLUMNS`, in units; int64.
        day (`str`, *optional*): on which they happened, as in 2026-11-28.
    """

    domains: tuple[str, ...]
    sums: Any
    day: str | None = None


class OutcomesCollector:
    """
    Sums outcomes, batch by batch, in memory that does not grow with their number.

    Args:
        domains (`Sequence[str]`): D names, the columns of weights.
    """

    def __init__(self, domains: Sequence[str]) -> None:
        self.domains = list(domains)
        self.number = 0
        self._sums: dict[tuple[str, str | None], Any] = {}  # by expert and day
        self._names: dict[tuple[str, str | None], int] = defaultdict(int)

    def add(self, outcomes: Sequence[Outcome], weights: Any) -> None:
        """Adds outcomes.

        Args:
            outcomes (`Sequence[Outcome]`): B of them, checked.
            weights (`np.ndarray` of shape `(B, D)`): units in which each counts, of [`shared`] or [`whole`].

        Raises:
            OverflowError: a sum would grow beyond what is counted exactly.
        """
        rows: dict[tuple[str, str | None], list[int]] = defaultdict(list)
        for index, outcome in enumerate(outcomes):
            rows[outcome.expert, outcome.day].append(index)
            self._names[outcome.expert, outcome.day] += outcome.number
        for key, indices in rows.items():
            expert, _ = key
            new = _sum_up([outcomes[index] for index in indices], weights[indices], expert)
            known = self._sums.get(key)
            self._sums[key] = new if known is None else plus(known, new, expert)
        self.number += len(outcomes)

    @property
    def ledger(self) -> Ledger:
        """What was added, as one contribution of each expert and day."""
        contributions: dict[str, dict[str, Contribution]] = defaultdict(dict)
        for (expert, day), sums in self._sums.items():
            used = [index for index in np.argsort(self.domains) if sums[index].any()]
            name = f"{self._names[expert, day] % _ROUND:032x}"
            contributions[expert][name] = Contribution(tuple(self.domains[i] for i in used), sums[used], day)
        return Ledger(contributions)


class Ledger:
    """
    The outcomes of experts, as contributions.

    Args:
        contributions (`Mapping[str, Mapping[str, Contribution]]`, *optional*): of each expert, by their names.
    """

    def __init__(self, contributions: Mapping[str, Mapping[str, Contribution]] | None = None) -> None:
        self.contributions = {name: dict(parts) for name, parts in (contributions or {}).items() if parts}

    def __bool__(self) -> bool:
        return bool(self.contributions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and self.digest == other.digest and self._sizes() == other._sizes()

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: Ledger) -> Ledger:
        """The union. Of a contribution that both have, weighed by different routers, both orders keep the same."""
        union = {name: dict(parts) for name, parts in self.contributions.items()}
        for name, parts in other.contributions.items():
            here = union.setdefault(name, {})
            for key, part in parts.items():
                here[key] = max(here.get(key, part), part, key=_bytes_of)
        return Ledger(union)

    def with_new(self, other: Ledger) -> Ledger:
        """The union with outcomes none of which are here yet.

        Raises:
            ValueError: some are.
        """
        twice = [name for name, parts in other.contributions.items() if parts.keys() & self._keys(name)]
        if twice:
            raise ValueError(
                f"These outcomes of {', '.join(map(repr, sorted(twice)))} are part of the router already: they would"
                " count twice. Remove them first, or leave them out."
            )
        return self | other

    def without(self, other: Ledger) -> Ledger:
        """What is left without another's contributions: bit for bit what it was before they were added.

        Raises:
            ValueError: some are not here, as when only a part of what was added together is to leave.
        """
        missing = [name for name, parts in other.contributions.items() if parts.keys() - self._keys(name)]
        if missing:
            raise ValueError(
                f"These outcomes of {', '.join(map(repr, sorted(missing)))} were not added as they are now, so they"
                " cannot be removed: give those that were added together, all of them and unchanged."
            )
        rest = {
            name: {key: part for key, part in parts.items() if key not in other._keys(name)}
            for name, parts in self.contributions.items()
        }
        return Ledger(rest)

    def of(self, experts: Iterable[str]) -> Ledger:
        """The outcomes of these experts."""
        return Ledger({name: self.contributions[name] for name in experts if name in self.contributions})

    def sums(self, domains: Sequence[str], experts: Sequence[str], half_life: float | None = None) -> Any:
        """Totals of each pair.

        Args:
            domains (`Sequence[str]`): D names; outcomes in other domains rest.
            experts (`Sequence[str]`): E names.
            half_life (`float`, *optional*): days after which outcomes count half; by default they always count whole.

        Returns:
            `np.ndarray` of shape `(D, E, 9)`: of `COLUMNS`, in units; int64, or float64 where days are weighed.

        Raises:
            OverflowError: a sum is beyond what is counted exactly.
        """
        by_day = self.by_day()
        if half_life is None or len(by_day) < 2:
            return self._totals(domains, experts)
        dates = [check_day(day) for day in by_day]
        weights = [0.5 ** ((dates[-1] - each).days / half_life) for each in dates]
        # A day's sums are exact, and days are added in their order: the same outcomes give the same bits.
        days = [ledger._totals(domains, experts) for ledger in by_day.values()]
        return sum(weight * totals for weight, totals in zip(weights, days, strict=True))

    def by_day(self) -> dict[str, Ledger]:
        """The ledger of each day, in order; empty where nothing has a day.

        What has no day is with the first day by which more than a tenth of the outcomes that have one had happened, and
        more than one of them; where no more than one has a day, with that.
        """
        parts = [(name, key, part) for name, these in self.contributions.items() for key, part in these.items()]
        happened: dict[str, int] = defaultdict(int)  # units of outcomes
        for _, _, part in parts:
            if part.day is not None:
                happened[part.day] += int(part.sums[:, 0].sum())
        found: dict[str, Ledger] = {day: Ledger() for day in sorted(happened)}
        if not found:
            return found
        undated = _day_of_undated(happened)
        for name, key, part in parts:
            found[part.day or undated].contributions.setdefault(name, {})[key] = part
        return found

    def since(self, day: str) -> Ledger:
        """What happened on a day or later; what has no day is not part of it.

        Args:
            day (`str`): such as 2026-11-28.
        """
        kept = {
            name: {key: part for key, part in parts.items() if part.day is not None and part.day >= day}
            for name, parts in self.contributions.items()
        }
        return Ledger(kept)

    def _totals(self, domains: Sequence[str], experts: Sequence[str]) -> Any:
        """Totals of each pair where all count whole, `(D, E, 9)`, int64."""
        place = {domain: index for index, domain in enumerate(domains)}
        totals = np.zeros((len(domains), len(experts), len(COLUMNS)), dtype=np.int64)
        for column, expert in enumerate(experts):
            for part in self.contributions.get(expert, {}).values():
                known = [index for index, domain in enumerate(part.domains) if domain in place]
                rows = [place[part.domains[index]] for index in known]
                totals[rows, column] = plus(totals[rows, column], part.sums[known], expert)
        return totals

    @property
    def number(self) -> int:
        """How many outcomes there are, to the nearest whole one."""
        parts = [part for parts in self.contributions.values() for part in parts.values()]
        return round(sum(int(part.sums[:, 0].sum()) for part in parts) / ONE)

    @property
    def domains(self) -> set[str]:
        """Those that outcomes count in."""
        return set[str]().union(*(_domains_of(parts) for parts in self.contributions.values()))

    @property
    def digest(self) -> dict[str, str]:
        """Names each expert's outcomes, however they were shared among contributions: their names add up."""
        return {
            name: f"{sum(int(key, 16) for key in parts) % _ROUND:032x}"
            for name, parts in sorted(self.contributions.items())
        }

    def _keys(self, expert: str) -> set[str]:
        return set(self.contributions.get(expert, ()))

    def _sizes(self) -> dict[str, bytes]:
        """Each expert's totals as bytes, to compare."""
        found = {}
        for name, parts in self.contributions.items():
            domains = sorted(_domains_of(parts))
            found[name] = repr(domains).encode() + self.sums(domains, [name]).tobytes()
        return found

    # Files.

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes one safetensors file an expert; the same outcomes give the same bytes."""
        for name, parts in self.contributions.items():
            tensors = {key: parts[key].sums for key in sorted(parts)}
            path = Path(folder, f"{file_name(name)}.safetensors")
            # One metadata entry: safetensors does not keep the order of several.
            save_file(tensors, path, metadata={"ir3de": json.dumps(header_of(parts), sort_keys=True)})

    @classmethod
    def load(cls, paths: Iterable[str | os.PathLike[str]], known: Sequence[str] = ()) -> Ledger:
        """Reads files that [`Ledger.save`] wrote, each named after its expert and checked as a stranger's.

        Args:
            paths (`Iterable[str]`): of the files.
            known (`Sequence[str]`, *optional*): names of experts, where a file does not tell its own.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file is damaged, or its sums cannot be such of outcomes.
        """
        return cls({name_of_file(Path(path).stem, known): read_contributions(path) for path in paths})


def _domains_of(parts: Mapping[str, Contribution]) -> set[str]:
    return set[str]().union(*(part.domains for part in parts.values()))


def _day_of_undated(happened: Mapping[str, int]) -> str:
    """The first day by which more than a tenth had happened, and more than one outcome; the last where none is such.

    Args:
        happened (`Mapping[str, int]`): units of outcomes by day.
    """
    days = sorted(happened)
    aside = max(sum(happened.values()) / 10, ONE)
    by_then = 0
    for day in days:
        by_then += happened[day]
        if by_then > aside:
            return day
    return days[-1]


def whole(column: Any, domains: int) -> Any:
    """Weights of outcomes whose domains are known: of shape `(B,)`, indices of domains, to `(B, D)`, int64."""
    weights = np.zeros((len(column), domains), dtype=np.int64)
    weights[np.arange(len(column)), column] = ONE
    return weights


def shared(p: Any) -> Any:
    """Weights of outcomes whose domains are not known, by the probabilities of these.

    Args:
        p (`np.ndarray` of shape `(B, D)`): float64, a row a prompt; rows add up to 1 but for rounding.

    Returns:
        `np.ndarray` of shape `(B, D)`, int64: units, a row's adding up to exactly one outcome. Rounded down; what is
        left goes to the domains that lost most, of equal ones the first.
    """
    p = np.asarray(p, dtype=np.float64)
    exact = p * (ONE / p.sum(axis=1, keepdims=True))
    weights = np.floor(exact).astype(np.int64)
    left = ONE - weights.sum(axis=1, keepdims=True)
    ranks = np.argsort(np.argsort(weights - exact, axis=1, kind="stable"), axis=1, kind="stable")
    return weights + (ranks < left)


def _sum_up(outcomes: Sequence[Outcome], weights: Any, expert: str) -> Any:
    """Sums of one expert's outcomes, of shape `(D, 9)`, from weights of shape `(B, D)`."""
    values = np.array([outcome[2:6] for outcome in outcomes], dtype=np.float64)  # None becomes NaN
    return sum_up(weights, values, expert)


def sum_up(weights: Any, values: Any, expert: str) -> Any:
    """Sums of one expert's outcomes.

    Args:
        weights (`np.ndarray` of shape `(B, D)`): units in which each counts, int64.
        values (`np.ndarray` of shape `(B, 4)`): score, cost, seconds and tokens of each; NaN where one is not known.
        expert (`str`): for messages.

    Returns:
        `np.ndarray` of shape `(D, 9)`, int64: of `COLUMNS`, in units.

    Raises:
        OverflowError: a sum would grow beyond what is counted exactly.
    """
    score = values[:, 0]
    parts = [weights, _times(weights, score), _times(weights, score * score)]
    for name, column in zip(MEASURES, values[:, 1:].T, strict=True):
        known = ~np.isnan(column)
        unit = COST_ONE // ONE if name == "cost" else 1
        parts += [weights * known[:, None], _times(weights, np.where(known, column, 0) * unit)]
    if max(float(part.sum(dtype=np.float64)) for part in parts) > _MOST:
        raise _overflow(expert)
    return np.stack([part.sum(axis=0) for part in parts], axis=1)


def _times(weights: Any, values: Any) -> Any:
    """Weights `(B, D)` times values `(B,)`, to the nearest unit."""
    return np.rint(weights * values[:, None]).astype(np.int64)


def plus(sums: Any, new: Any, expert: str) -> Any:
    """The sum of two arrays of sums, none of which is negative.

    Args:
        sums, new (`np.ndarray`): int64, of one shape, in units.
        expert (`str`): for messages.

    Raises:
        OverflowError: a sum would grow beyond what is counted exactly.
    """
    total = sums + new
    if (total < 0).any() or (total > _MOST).any():  # two numbers that are not negative wrap to one that is
        raise _overflow(expert)
    return total


def _overflow(expert: str) -> OverflowError:
    return OverflowError(
        f"The outcomes of {expert!r} add up to more than is counted exactly (a cost of {_MOST / COST_ONE:.2g}, or"
        f" {_MOST / ONE:.2g} outcomes, seconds or tokens): give costs in a larger unit."
    )


def _bytes_of(part: Contribution) -> bytes:
    return repr((part.domains, part.day)).encode() + bytes(part.sums.tobytes())


# What is read.


def header_of(parts: Mapping[str, Contribution]) -> dict[str, Any]:
    """What a file says of one expert's contributions besides their sums, as JSON."""
    header: dict[str, Any] = {"format": FORMAT, "domains": {key: list(parts[key].domains) for key in sorted(parts)}}
    if days := {key: parts[key].day for key in sorted(parts) if parts[key].day is not None}:
        header["days"] = days
    return header


def read_contributions(path: str | os.PathLike[str]) -> dict[str, Contribution]:
    """The contributions of one expert's file, checked as a stranger's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or of another format, or its sums cannot be such of outcomes.
    """
    with opened(path) as (file, header):
        return contributions_of(path, header, file, {key: key for key in file.keys()})  # noqa: SIM118 (no mapping)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """A file of outcomes and its header, which may be anything.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or far too large.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"The outcomes file {path} is missing: copy it from the router's repository again.")
    try:
        _check_bytes(path)
        with safe_open(path, framework="numpy") as file:
            yield file, json.loads((file.metadata() or {}).get("ir3de", "{}"))
    except (SafetensorError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is truncated or not an outcomes file ({error}): fetch it again.") from error


def contributions_of(path: Any, header: Any, file: Any, tensors: Mapping[str, str]) -> dict[str, Contribution]:
    """One expert's contributions in a file, checked as a stranger's.

    Args:
        path (`Path`): for messages.
        header (`Any`): what the file says of them, as [`header_of`] makes it.
        file (`safe_open`): the file.
        tensors (`Mapping[str, str]`): where the sums of each contribution are in it.

    Raises:
        ValueError: header and sums do not fit each other, or the sums cannot be such of outcomes.
    """
    slices = {key: file.get_slice(tensor) for key, tensor in tensors.items()}
    layout = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    domains = _check_layout(path, header, layout)
    days = _check_days(path, header, layout)
    sums = {key: file.get_tensor(tensor) for key, tensor in tensors.items()}
    for key, part in sums.items():
        _check_sums(path, key, part)
    return {key: Contribution(tuple(domains[key]), part, days.get(key)) for key, part in sums.items()}


def _check_bytes(path: str | os.PathLike[str]) -> None:
    """Raises ValueError where a file or its header is too large to be read at all."""
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > _MOST_HEADER or os.path.getsize(path) > _MOST_BYTES:
        raise ValueError(
            f"{path} has {os.path.getsize(path):,} bytes, of which its header claims {header:,}; expected at most"
            f" {_MOST_BYTES:,} and {_MOST_HEADER:,}. The file was not written by this library."
        )


def _check_layout(path: Any, header: Any, layout: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, list[str]]:
    """The domains of each contribution; raises ValueError unless header and tensors fit each other."""
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise ValueError(f"{path} has format {str(found)[:60]!r}; this version reads {FORMAT!r}.")
    domains = header.get("domains")
    if not layout or not isinstance(domains, dict) or domains.keys() != layout.keys():
        raise ValueError(f"{path}: its header does not name the domains of each of its {len(layout)} contributions.")
    for key, found in layout.items():
        names = domains[key]
        if not _KEY.fullmatch(key) or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: {key[:80]!r} is no contribution with its domains: fetch the file again.")
        for name in names:
            check_name(name)
        if names != sorted(set(names)) or found != ((len(names), len(COLUMNS)), "I64"):
            raise ValueError(
                f"{path}: contribution {key} has shape {found[0]} and dtype {found[1]} for {len(names)} domains;"
                f" expected ({len(set(names))}, {len(COLUMNS)}) and I64. The file was not written by this library."
            )
    return domains  # type: ignore[return-value]


def _check_days(path: Any, header: dict[str, Any], keys: Collection[str]) -> dict[str, str]:
    """The days of the contributions that have one; raises ValueError where they are none."""
    days = header.get("days", {})
    if not isinstance(days, dict) or not days.keys() <= set(keys):
        raise ValueError(f"{path}: its header names days of other contributions than it has: fetch the file again.")
    for key, day in days.items():
        try:
            check_day(day)
        except ValueError as error:
            raise ValueError(f"{path}: contribution {key}: {error}. Fetch the file again.") from error
    return days


def _check_sums(path: Any, key: str, sums: Any) -> None:
    """Raises ValueError where sums cannot be such of outcomes with scores from 0 to 1."""
    n, score, squared = sums[:, 0], sums[:, 1], sums[:, 2]
    wrong = (sums < 0).any() or (sums > _MOST).any() or (squared > score).any() or (score > n).any()
    for column in range(3, len(COLUMNS), 2):
        wrong = wrong or (sums[:, column] > n).any() or ((sums[:, column] == 0) & (sums[:, column + 1] != 0)).any()
    if wrong:
        raise ValueError(
            f"{path}: the sums of contribution {key} are not such of outcomes: expected none below 0, scores from 0 to"
            " their number, squares no larger, and no costs, seconds or tokens without outcomes that have them."
        )


# What is expected of a pair.


class Pairs(NamedTuple):
    """
    What is expected of each expert in each domain.

    Args:
        score (`np.ndarray` of shape `(D, E)`): 0 to 1.
        error (`np.ndarray` of shape `(D, E)`): standard error of the score; NaN for experts without outcomes.
        cost (`np.ndarray` of shape `(D, E)`): NaN for experts whose cost was never measured.
        seconds (`np.ndarray` of shape `(D, E)`): likewise.
        n (`np.ndarray` of shape `(D, E)`): outcomes.
    """

    score: Any
    error: Any
    cost: Any
    seconds: Any
    n: Any


def expected(sums: Any, serves: Any, strength: float = STRENGTH) -> Pairs:
    """What outcomes, and where they are few what is known beside them, let expect.

    Args:
        sums (`np.ndarray` of shape `(D, E, 9)`): of [`Ledger.sums`].
        serves (`np.ndarray` of shape `(D, E)`): true where an expert serves a domain, as its spec says.
        strength (`float`): outcomes that the prior counts for.

    A pair's mean is shrunk toward a prior that counts for `strength` outcomes. The prior is what outcomes of others, in
    the domain and elsewhere, let expect; where experts serve the domain it is in turn shrunk toward what their specs
    say, 1 for who serves it and 0 for who does not, which counts for as many outcomes in the domain. So without any
    outcome in a domain the specs alone speak, which is the paper's choice to the last digit.

    Returns:
        [`Pairs`]: as float64.
    """
    values = sums / _UNITS
    n, score, squared = values[..., 0], values[..., 1], values[..., 2]
    prior, variance = _prior(n, score, squared, strength)
    in_domain = n.sum(axis=1, keepdims=True)
    claimed = (strength * serves + in_domain * prior) / (strength + in_domain)
    prior = np.where(serves.any(axis=1, keepdims=True), claimed, prior)
    places = [COLUMNS.index(name) for name in ("cost", "seconds")]
    cost, seconds = (_relative(values[..., at - 1], values[..., at], strength, 1 / _UNITS[at]) for at in places)
    error = np.where(n.sum(axis=0) > 0, np.sqrt(variance / (n + strength)), np.nan)
    return Pairs((score + strength * prior) / (n + strength), error, cost, seconds, n)


def _prior(n: Any, score: Any, squared: Any, strength: float) -> tuple[Any, Any]:
    """What an expert is expected to score in a domain before it was judged there, and the variance of its outcomes.

    The mean of all, plus what the domain adds, plus what the expert's own level adds, by ridge regression on the pairs'
    means:

        min_{a, b} sum_de n_de (mean_de - mean - a_d - b_e)^2 + small |a|^2 + strength |b|^2

    so that what cannot be told apart counts as the domain's. Less a standard error of the level, since of several
    experts that are hardly known the luckiest would be chosen. Outcomes tell of a level only as far as others were
    judged in the same domain: sum_d n_de (1 - n_de / n_d) of them.

    Args:
        n, score, squared (`np.ndarray` of shape `(D, E)`): sums over outcomes.

    Returns:
        `np.ndarray` of shapes `(D, E)` and `(E,)`.
    """
    domains, experts = n.shape
    of_domain, of_expert = n.sum(axis=1), n.sum(axis=0)
    mean = score.sum() / max(float(n.sum()), _SMALL)
    H = np.zeros((domains + experts, domains + experts))
    H[:domains, domains:], H[domains:, :domains] = n, n.T
    np.fill_diagonal(H, np.concatenate([of_domain + _SMALL, of_expert + strength]))
    rest = score - n * mean
    effects = np.linalg.solve(H, np.concatenate([rest.sum(axis=1), rest.sum(axis=0)]))
    prior = mean + effects[:domains, None] + effects[domains:]
    squares = np.maximum(squared - 2 * score * prior + n * prior**2, 0)
    common = squares.sum() / max(float(n.sum()), _SMALL)
    variance = (squares.sum(axis=0) + strength * common) / (of_expert + strength)
    compared = (n * (1 - n / np.maximum(of_domain, _SMALL)[:, None])).sum(axis=0)
    return np.clip(prior - np.sqrt(variance / (compared + strength)), 0, 1), variance


def _relative(n: Any, total: Any, strength: float, unit: float) -> Any:
    """The expected cost, or seconds, of each pair: `(D, E)`, NaN for experts without any measured.

    Where few are measured: the expert's mean, times how much dearer the domain is for all. What the rounding of sums to
    a unit may have made, at most half of one for each outcome, is no difference between domains.
    """
    count = n.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        level = total.sum(axis=0) / count
        relative = total / level
        relative = np.where(np.abs(relative - n) <= count * unit / 2 / level, n, relative)
        relative = np.where(level > 0, relative, 0)
    priced = np.where(level > 0, n, 0)
    factor = (relative.sum(axis=1) + strength) / (priced.sum(axis=1) + strength)
    return (total + strength * factor[:, None] * level) / (n + strength)
