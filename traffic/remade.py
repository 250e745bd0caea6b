"""The ledger of a store: every score that is there, made into outcomes again, the same each time to the last bit.

Each contribution is what one server's answers of one day were worth, of one expert. Its name says whose it is: the
first twelve digits stand for the server, the other twenty for the outcomes, whatever their order. So what a store added
before can be told from all else in a router, and is replaced when the ledger is remade.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Integer, literal, select

from ir3de.outcomes_ir3de import ONE, Contribution, Ledger, plus, sum_up

from .store import SCORED, Store
from .tables import answers, feedback, panels, signals

_ROWS = 50_000  # that are read at a time
_DAY = 86_400
TAG = 12  # digits of a name that stand for the server
_ROUND = 1 << (4 * (32 - TAG))  # where the rest of a name starts again
_SUMS = 9  # columns of a ledger


class _Group(NamedTuple):
    """What makes one contribution; what is recognised in it may be of several panels."""

    replica: str
    expert: str
    day: str


class Remade(NamedTuple):
    """
    What a store, or several of them, are worth to a router.

    Args:
        ledger ([`Ledger`]): of the scores.
        tags (`frozenset[str]`): of the servers whose answers are or were in the store, as [`tag_of`] makes them.
        outcomes (`int`): scores and signs that were counted.
        store (`str`): tells the store from all others; empty where that is not known.
        held (`frozenset[str]`): of the servers whose outcomes are in the store now, and of the one that serves.
    """

    ledger: Ledger
    tags: frozenset[str]
    outcomes: int
    store: str = ""
    held: frozenset[str] = frozenset()

    def changes(self, ledger: Ledger, experts: Iterable[str]) -> tuple[Ledger, Ledger]:
        """What leaves a router's ledger and what joins it, so that it holds of these servers this alone.

        Args:
            ledger ([`Ledger`]): of the router.
            experts (`Iterable[str]`): of the router; outcomes of others are left out.
        """
        new = self.ledger.of(experts)
        leaves, joins = {}, {}
        for expert in {*ledger.contributions, *new.contributions}:
            here, there = ledger.contributions.get(expert, {}), new.contributions.get(expert, {})
            leaves[expert] = {
                name: part for name, part in here.items() if name[:TAG] in self.tags and name not in there
            }
            joins[expert] = {name: part for name, part in there.items() if name not in here}
        return Ledger(leaves), Ledger(joins)


def tag_of(replica: str) -> str:
    """What the names of a server's contributions begin with: 12 hexadecimal digits."""
    return hashlib.blake2b(replica.encode(), digest_size=TAG // 2).hexdigest()


def remade(store: Store, replica: str | None = None) -> Remade:
    """Makes the ledger of a store.

    Args:
        store ([`Store`]): with the scores. A sign that nobody gave as a score counts where the answer has no score.
        replica (`str`, *optional*): only this server's answers.

    Raises:
        OverflowError: the scores of an expert's day add up to more than is counted exactly; the message says which.
        StoreUnavailable: the store cannot be read.
    """
    sums: dict[_Group, dict[str, Any]] = defaultdict(dict)
    names: dict[_Group, int] = defaultdict(int)
    outcomes = 0
    for group, domains, weights, values, of_names in _groups(store, replica):
        try:
            totals = sum_up(weights, values, group.expert)
            for domain, row in zip(domains, totals, strict=True):
                sums[group][domain] = plus(sums[group].get(domain, 0), row, group.expert)
        except OverflowError as error:
            raise _too_much(group, error) from None
        names[group] += of_names
        outcomes += len(values)
    contributions: dict[str, dict[str, Contribution]] = defaultdict(dict)
    for group, of_domain in sums.items():
        kept = sorted(domain for domain, row in of_domain.items() if row.any())
        name = f"{tag_of(group.replica)}{names[group] % _ROUND:0{32 - TAG}x}"
        rows = np.stack([of_domain[domain] for domain in kept])
        contributions[group.expert][name] = Contribution(tuple(kept), rows, group.day)
    tags = frozenset(map(tag_of, store.replicas))
    held = frozenset(map(tag_of, {store.replica, *(group.replica for group in sums)}))
    return Remade(Ledger(contributions), tags, outcomes, store.identity, held)


def _too_much(group: _Group, error: OverflowError) -> OverflowError:
    """The error with whose answers they are, and how to be rid of them."""
    until = date.fromisoformat(group.day) + timedelta(days=1)
    which = shlex.quote(f"replica={group.replica},since={group.day},until={until}")
    return OverflowError(
        f"Of the server {group.replica!r} on {group.day}: {error} Or take that day's answers back, with `ir3de outcomes"
        f" ROUTER --from-store STORE --take-back {which}`."
    )


def _groups(store: Store, replica: str | None) -> Iterator[tuple[_Group, list[str], Any, Any, int]]:
    """Scores, those together that count in the same contribution and panel: domains, weights `(B, D)`, values `(B, 4)`,
    and the sum of their names.
    """
    with store.reading() as connection:
        known = {row.name: json.loads(row.domains) for row in connection.execute(select(panels))}
        for query in _queries(replica):
            result = connection.execution_options(stream_results=True).execute(query)
            for rows in result.partitions(_ROWS):
                for (replica_, expert, day, panel), columns in _sorted(rows):
                    domains = known[panel]
                    units, score, cost, seconds, tokens, packed, names = columns
                    weights = np.frombuffer(b"".join(packed), dtype="<u4").reshape(-1, len(domains)).astype(np.int64)
                    if (units != ONE).any():
                        weights = parts_of(weights, units)
                    values = np.stack([score, cost, seconds, tokens], axis=1)
                    yield _Group(replica_, expert, _date(day)), domains, weights, values, _total(names)


def _queries(replica: str | None) -> list[Any]:
    """Scores, and signs of answers that have none."""
    of_answer = (answers.c.replica, answers.c.expert, answers.c.panel, answers.c.time, answers.c.weights)
    whose = [] if replica is None else [answers.c.replica == replica]
    scores = select(
        *of_answer,
        literal(ONE, Integer).label("units"),
        feedback.c.score,
        feedback.c.cost,
        feedback.c.seconds,
        answers.c.tokens,
        feedback.c.name,
    ).join(feedback, feedback.c.answer == answers.c.number)
    signs = (
        select(
            *of_answer,
            signals.c.units,
            literal(0.0),
            answers.c.cost,
            answers.c.seconds,
            answers.c.tokens,
            signals.c.name,
        )
        .join(signals, signals.c.answer == answers.c.number)
        .where(~select(feedback.c.answer).where(feedback.c.answer == answers.c.number).exists())
    )
    usable = (answers.c.panel.is_not(None), answers.c.status.in_(SCORED), *whose)
    return [scores.where(*usable), signs.where(*usable, signals.c.units > 0)]


def _sorted(rows: Sequence[Any]) -> Iterator[tuple[tuple[str, str, int, str], list[Any]]]:
    """Rows by replica, expert, day and panel; each with its columns, those of numbers as arrays."""
    replicas, experts, of_panel, times, packed, *numbers, names = zip(*rows, strict=True)
    kinds: dict[tuple[str, str, str], int] = {}
    kind = np.array([kinds.setdefault(each, len(kinds)) for each in zip(replicas, experts, of_panel, strict=True)])
    day = np.floor(np.array(times) / _DAY).astype(np.int64)
    columns = [np.array(column, dtype=np.float64) for column in numbers]  # None becomes NaN
    order = np.lexsort((day, kind))
    ends = np.flatnonzero(np.diff(kind[order]) | np.diff(day[order])) + 1
    known = list(kinds)
    for part in np.split(order, ends):
        replica, expert, panel = known[kind[part[0]]]
        of_part = part.tolist()
        texts = [[column[index] for index in of_part] for column in (packed, names)]
        units, *values = (column[part] for column in columns)
        yield (replica, expert, int(day[part[0]]), panel), [units.astype(np.int64), *values, *texts]


def _date(day: int) -> str:
    """A day since 1970 as a date, such as 2026-11-28."""
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()


def parts_of(weights: Any, units: Any) -> Any:
    """Weights of outcomes that count for less than one.

    Args:
        weights (`np.ndarray` of shape `(B, D)`): int64, each row adding up to `ONE`.
        units (`np.ndarray` of shape `(B,)`): int64, what each row shall add up to.

    Returns:
        `np.ndarray` of shape `(B, D)`: rounded down; what is left goes to the domains that lost most.
    """
    exact = weights * units[:, None]
    made, lost = exact // ONE, exact % ONE
    left = units[:, None] - made.sum(axis=1, keepdims=True)
    ranks = np.argsort(np.argsort(-lost, axis=1, kind="stable"), axis=1, kind="stable")
    return made + (ranks < left)


def _total(names: Sequence[bytes]) -> int:
    """The sum of numbers of 16 bytes: of their four parts by themselves, so that none grows beyond 64 bits."""
    parts = np.frombuffer(b"".join(names), dtype="<u4").reshape(-1, 4).sum(axis=0, dtype=np.uint64)
    return sum(int(part) << (32 * place) for place, part in enumerate(parts))
