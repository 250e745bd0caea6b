"""Routers that learn while they answer, from the score of the expert that they chose and of no other.

All are asked for a few prompts at a time and told afterwards what came of it, as a server that answers several at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ir3de.outcomes_ir3de import COLUMNS, ONE, expected
from ir3de.policy_ir3de import explored
from ir3de.scripts.metrics.measures import Array, Integers


@dataclass(frozen=True)
class Stream:
    """
    Prompts that come one after another, as each router sees them.

    Args:
        p (`np.ndarray` of shape `(N, D)`): probabilities of domains, of a recogniser that knows other prompts.
        rows (`np.ndarray` of shape `(N, h)`): prompt rows.
        vectors (`np.ndarray` of shape `(N, v)`): of a sentence encoder.
        experts (`int`): E.
    """

    p: Array
    rows: Array
    vectors: Array
    experts: int


class Learner(Protocol):
    """What a replay asks of a router."""

    def choose(self, which: Integers, draw: np.random.Generator) -> Integers:
        """The experts that answer these prompts of its stream."""

    def learn(self, which: Integers, experts: Integers, scores: Array) -> None:
        """What they scored."""

    def expected(self, stream: Stream) -> Array:
        """Expected scores of prompts that it has not seen, `(N, E)`."""


class Pairwise:
    """
    Ours: sums a pair of domain and expert, by which a choice is made as a router makes it.

    Args:
        stream ([`Stream`]): that it learns on.
        explore_loss (`float`): what a choice may be expected to lose.
        first (`int`): prompts that each expert answers before any is preferred, in turn.
        fades (`float`): what old outcomes count times after each batch.
    """

    def __init__(self, stream: Stream, explore_loss: float = 0.0, first: int = 0, fades: float = 1.0) -> None:
        self.stream = stream
        self.explore_loss = explore_loss
        self.first = first
        self.fades = fades
        self.sums = np.zeros((stream.p.shape[1], stream.experts, len(COLUMNS)))
        self.asked = 0
        self._expect()

    def choose(self, which: Integers, draw: np.random.Generator) -> Integers:
        """The best; or by Thompson sampling one that is within the loss."""
        p = self.stream.p[which]
        worth = p @ self.pairs.score
        if self.explore_loss > 0:
            may = np.ones(worth.shape[1], dtype=bool)
            choice = explored(worth, np.sqrt(p**2 @ self.error**2), self.explore_loss, may, draw)
        else:
            choice = worth.argmax(axis=1)
        turn = self.asked + np.arange(len(which))
        self.asked += len(which)
        return np.where(turn < self.first * self.stream.experts, turn % self.stream.experts, choice)

    def learn(self, which: Integers, experts: Integers, scores: Array) -> None:
        """Adds to the sums of every domain by its probability."""
        self.sums *= self.fades
        add_to(self.sums, self.stream.p[which], experts, scores)
        self._expect()

    def expected(self, stream: Stream) -> Array:
        """p times the pairs' scores."""
        scores: Array = stream.p @ self.pairs.score
        return scores

    def _expect(self) -> None:
        self.pairs = expected(self.sums, np.zeros(self.sums.shape[:2], dtype=bool))
        known = self.pairs.error[~np.isnan(self.pairs.error)]
        self.error = np.where(np.isnan(self.pairs.error), known.max() if len(known) else 1.0, self.pairs.error)


def add_to(sums: Array, p: Array, experts: Integers, scores: Array) -> None:
    """Adds outcomes to the sums of pairs, `(D, E, 9)`, in units."""
    for column, values in (("n", np.ones_like(scores)), ("score", scores), ("score_squared", scores**2)):
        np.add.at(sums[..., COLUMNS.index(column)].T, experts, ONE * p * values[:, None])


class Epsilon:
    """
    Another learner, but a share of the prompts go to any expert.

    Args:
        inner ([`Learner`]): that learner.
        share (`float`): of the prompts.
        experts (`int`): E.
    """

    def __init__(self, inner: Learner, share: float, experts: int) -> None:
        self.inner = inner
        self.share = share
        self.experts = experts
        self.learn = inner.learn
        self.expected = inner.expected

    def choose(self, which: Integers, draw: np.random.Generator) -> Integers:
        """The other's choices, or any."""
        anyone = draw.integers(self.experts, size=len(which))
        return np.where(draw.random(len(which)) < self.share, anyone, self.inner.choose(which, draw))


class LinUCB:
    """
    A ridge regression an expert on features of prompts, and the upper end of its confidence decides (Li et al. 2010).

    Args:
        stream ([`Stream`]): that it learns on.
        features (`Callable`): of a stream, `(N, f)`.
        width (`float`): alpha, of the confidence.
        regularization (`float`): lambda.
    """

    def __init__(
        self, stream: Stream, features: Callable[[Stream], Array], width: float, regularization: float = 1.0
    ) -> None:
        self.features = features
        self.X = features(stream)
        self.width = width
        size = self.X.shape[1]
        self.A = np.tile(regularization * np.eye(size), (stream.experts, 1, 1))
        self.b = np.zeros((stream.experts, size))
        self.inverse = np.linalg.inv(self.A)

    def choose(self, which: Integers, draw: np.random.Generator) -> Integers:
        """The largest upper end; of equal ones any."""
        X = self.X[which]
        upper = self._means(X) + self.width * np.sqrt(np.einsum("nf,efg,ng->ne", X, self.inverse, X, optimize=True))
        best: Integers = (upper + 1e-9 * draw.random(upper.shape)).argmax(axis=1)
        return best

    def learn(self, which: Integers, experts: Integers, scores: Array) -> None:
        """Adds to A and b."""
        for expert in np.unique(experts):
            X = self.X[which[experts == expert]]
            self.A[expert] += X.T @ X
            self.b[expert] += X.T @ scores[experts == expert]
            self.inverse[expert] = np.linalg.inv(self.A[expert])

    def expected(self, stream: Stream) -> Array:
        """Its means."""
        return self._means(self.features(stream))

    def _means(self, X: Array) -> Array:
        means: Array = X @ np.einsum("efg,eg->fe", self.inverse, self.b)
        return means


class NearestOnline:
    """
    The mean of an expert's nearest prompts, and of any expert until each has answered so many.

    Args:
        stream ([`Stream`]): that it learns on.
        number (`int`): of neighbours.
        first (`int`): prompts that each expert answers before any is preferred, in turn.
    """

    def __init__(self, stream: Stream, number: int = 20, first: int = 5) -> None:
        self.stream = stream
        self.number = number
        self.first = first
        self.asked = 0
        self.known: list[list[int]] = [[] for _ in range(stream.experts)]
        self.scores: list[list[float]] = [[] for _ in range(stream.experts)]

    def choose(self, which: Integers, draw: np.random.Generator) -> Integers:
        """The best mean."""
        turn = self.asked + np.arange(len(which))
        self.asked += len(which)
        early = turn < self.first * self.stream.experts
        if early.all():
            return turn % self.stream.experts
        return np.where(early, turn % self.stream.experts, self._means(self.stream.vectors[which]).argmax(axis=1))

    def learn(self, which: Integers, experts: Integers, scores: Array) -> None:
        """Keeps them."""
        for row, expert, score in zip(which.tolist(), experts.tolist(), scores.tolist(), strict=True):
            self.known[expert].append(row)
            self.scores[expert].append(score)

    def expected(self, stream: Stream) -> Array:
        """Of the neighbours among those that it has seen."""
        return self._means(stream.vectors)

    def _means(self, new: Array) -> Array:
        return np.stack([self._of(expert, new) for expert in range(self.stream.experts)], axis=1)

    def _of(self, expert: int, new: Array) -> Array:
        rows, scores = self.known[expert], np.array(self.scores[expert])
        if not rows:
            return np.zeros(len(new))
        similar = new @ self.stream.vectors[rows].T
        nearest = np.argpartition(-similar, min(self.number, len(rows)) - 1, axis=1)[:, : self.number]
        means: Array = scores[nearest].mean(axis=1)
        return means


def replayed(
    learner: Learner, scores: Array, order: Integers, draw: np.random.Generator, at_once: int = 8
) -> tuple[Array, Integers]:
    """Lets a learner answer prompts in an order; only what its choices scored is told to it.

    Args:
        learner ([`Learner`]): that begins.
        scores (`np.ndarray` of shape `(N, E)`): of all experts.
        order (`np.ndarray` of shape `(T,)`): of prompts.
        draw (`np.random.Generator`): of what is random.
        at_once (`int`): prompts that are chosen for before the next is learned from.

    Returns:
        scores and choices, in that order, both `(T,)`.
    """
    got, choices = np.zeros(len(order)), np.zeros(len(order), dtype=np.int64)
    for start in range(0, len(order), at_once):
        which, part = order[start : start + at_once], slice(start, start + at_once)
        choices[part] = learner.choose(which, draw)
        got[part] = scores[which, choices[part]]
        learner.learn(which, choices[part], got[part])
    return got, choices


Make = Callable[[Stream], Any]
