"""Routers that learn from outcomes: each expects what experts will score on a prompt, and what they will cost.

Hyper-parameters are chosen on a held-out fifth of the training prompts, by the macro mean of what the chosen experts
scored there; then the router is fitted to all of them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ir3de.outcomes_ir3de import COLUMNS, COST_ONE, ONE, STRENGTH, Pairs, expected
from ir3de.scripts.data.judged import Judged
from ir3de.scripts.fitting.options import FitOptions
from ir3de.scripts.metrics.frontier import chosen, macro_mean
from ir3de.scripts.metrics.measures import Array, Integers
from ir3de.scripts.routers.encoders import Encoder
from ir3de.scripts.routers.ours import IR3DERouter

FOLDS = 5


class Predictor(Protocol):
    """What a comparison asks of a router that learns from outcomes."""

    choice: str

    def fit(self, data: Judged) -> object:
        """Learns from judged prompts."""

    def expected(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Expected scores and costs of each expert, both of shape `(N, E)`."""


def folds(number: int) -> Integers:
    """A fold for each of so many prompts, at random."""
    return np.random.default_rng(0).permutation(number) % FOLDS


def score_of(expected_scores: Array, data: Judged) -> float:
    """Macro mean of what the experts that are expected to score most have scored."""
    return macro_mean(chosen(data.scores, expected_scores.argmax(axis=1)), data.groups)


class BestSingle:
    """The expert of the largest macro mean answers everything."""

    choice = ""

    def fit(self, data: Judged) -> BestSingle:
        """Takes down each expert's means."""
        experts = range(data.scores.shape[1])
        judged = [~np.isnan(data.scores[:, expert]) for expert in experts]
        groups = np.asarray(data.groups)
        self.scores = np.array([macro_mean(data.scores[m, e], groups[m].tolist()) for e, m in enumerate(judged)])
        self.costs = np.array([np.nan if not m.any() else data.costs[m, e].mean() for e, m in enumerate(judged)])
        return self

    def expected(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """The same for every prompt."""
        shape = (len(texts), 1)
        return np.tile(self.scores, shape), np.tile(self.costs, shape)


class OnFeatures:
    """
    A regression of scores and costs on features of prompts.

    Args:
        encode (`Callable`): texts to an array or sparse matrix of shape `(N, size)`, fitted on the first texts if need
            be.
        grid (`Sequence`): hyper-parameters to choose among.
    """

    grid: tuple[Any, ...] = ()

    def __init__(self, features: Any) -> None:
        self.features = features
        self.choice = ""

    def fit(self, data: Judged) -> OnFeatures:
        """Chooses on a held-out fifth, and fits to everything."""
        X = self.features.of_train(data.texts)
        held = folds(len(data.texts)) == 0
        rest, away = data.take(np.flatnonzero(~held)), data.take(np.flatnonzero(held))
        full = not np.isnan(away.scores).any()
        trials = []
        for value in self.grid:
            model = self.regression(value, X[~held], rest.scores)
            found = model(X[held])
            # Where each expert was judged on prompts of its own there is no choice to look at: nearness counts.
            figure = score_of(found, away) if full else -float(np.nanmean((found - away.scores) ** 2))
            trials.append((figure, value))
        best = max(trials, key=lambda trial: trial[0])[1]
        self.choice = str(best)
        self.score_model = self.regression(best, X, data.scores)
        self.scale = np.nanmean(data.costs, axis=0) if data.has_costs else None
        self.cost_model = None if self.scale is None else self.regression(best, X, data.costs / self.scale)
        return self

    def expected(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Of each expert."""
        X = self.features.of(texts)
        scores = self.score_model(X)
        return scores, np.full_like(scores, np.nan) if self.cost_model is None else self.cost_model(X) * self.scale

    def regression(self, value: Any, X: Any, Y: Array) -> Any:
        """A function of features that was fitted to targets, NaN where there is none."""
        raise NotImplementedError


class Neighbours(OnFeatures):
    """The mean of an expert's nearest judged prompts."""

    grid = (5, 10, 20, 40, 80)

    def regression(self, value: int, X: Array, Y: Array) -> Any:
        """k nearest by cosine, of each expert among those that it was judged on."""
        known = [np.flatnonzero(~np.isnan(column)) for column in Y.T]
        shared = all(len(rows) == len(X) for rows in known)

        def of_expert(similarities: Array, expert: int) -> Array:
            """Means of one expert's scores: `(N,)`."""
            rows = known[expert]
            nearest = np.argpartition(-similarities[:, rows], min(value, len(rows)) - 1, axis=1)[:, :value]
            means: Array = Y[rows, expert][nearest].mean(axis=1)
            return means

        def predict(new: Array) -> Array:
            """Of shape `(N, E)`."""
            similarities = new @ X.T
            if shared:
                nearest = np.argpartition(-similarities, min(value, len(X)) - 1, axis=1)[:, :value]
                means: Array = Y[nearest].mean(axis=1)
                return means
            return np.stack([of_expert(similarities, expert) for expert in range(Y.shape[1])], axis=1)

        return predict


class Ridge(OnFeatures):
    """Ridge regression of each expert's scores."""

    grid = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

    def regression(self, value: float, X: Any, Y: Array) -> Any:
        """scikit-learn's, fitted to all experts at once where all were judged on the same prompts."""
        from sklearn.linear_model import Ridge as Regression

        if not np.isnan(Y).any():
            return Regression(alpha=value).fit(X, Y).predict
        known = [~np.isnan(column) for column in Y.T]
        models = [Regression(alpha=value).fit(X[m], Y[m, e]) for e, m in enumerate(known)]
        return lambda new: np.stack([model.predict(new) for model in models], axis=1)


class Network(OnFeatures):
    """A network with one hidden layer."""

    grid = (64, 256)

    def regression(self, value: int, X: Array, Y: Array) -> Any:
        """scikit-learn's, which stops when a part of the prompts is predicted no better."""
        from sklearn.neural_network import MLPRegressor

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return (
                MLPRegressor(hidden_layer_sizes=(value,), early_stopping=True, max_iter=200, random_state=0)
                .fit(X, Y)
                .predict
            )


class EncoderFeatures:
    """Vectors of a sentence encoder, from its cache."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def of(self, texts: Sequence[str]) -> Array:
        """Unit vectors."""
        return self.encoder.cached(list(texts))

    of_train = of


class WordFeatures:
    """TF-IDF of words and pairs of words."""

    def of_train(self, texts: Sequence[str]) -> Any:
        """Learns the words and their weights."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, token_pattern=r"(?u)\b\w+\b")
        return self.words.fit_transform(texts)

    def of(self, texts: Sequence[str]) -> Any:
        """Of the words that it knows."""
        return self.words.transform(texts)


def baselines(encoder: Encoder) -> dict[str, Callable[[], OnFeatures]]:
    """Makers of the routers to compare with, by name."""
    return {
        "kNN on the encoder": lambda: Neighbours(EncoderFeatures(encoder)),
        "ridge on the encoder": lambda: Ridge(EncoderFeatures(encoder)),
        "network on the encoder": lambda: Network(EncoderFeatures(encoder)),
        "ridge on TF-IDF": lambda: Ridge(WordFeatures()),
    }


class DomainsByOutcomes:
    """
    Ours: the domains that the router recognises, times what experts scored in each.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): of the embeddings.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
        strength (`float`): outcomes that the prior counts for.
        options ([`FitOptions`], *optional*): how domains are learned to be recognised.
    """

    def __init__(
        self, tokenizer: Any, embeddings: Any, strength: float = STRENGTH, options: FitOptions | None = None
    ) -> None:
        self.recogniser = IR3DERouter(options or FitOptions(), tokenizer, embeddings)
        self.strength = strength
        self.choice = ""

    def fit(self, data: Judged, domains: Sequence[str] | None = None) -> DomainsByOutcomes:
        """Learns to recognise domains, those of the data or others, and what experts score in them."""
        self.recogniser.fit(data.texts, domains or data.groups)
        self.choice = self.recogniser.choice
        self.pairs = self._pairs(data, domains or data.groups)
        return self

    def learnt(self, data: Judged) -> DomainsByOutcomes:
        """One with the same recogniser that learned from other outcomes."""
        other = copy.copy(self)
        other.pairs = self._pairs(data, data.groups)
        return other

    def _pairs(self, data: Judged, domains: Sequence[str]) -> Pairs:
        sums = sums_of(data, domains, self.recogniser.domains)
        return expected(sums, np.zeros(sums.shape[:2], dtype=bool), self.strength)

    def expected(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """p(d | x) times the pairs' scores and costs."""
        return self.of_probabilities(self.recogniser.scores(texts))

    def of_probabilities(self, p: Array) -> tuple[Array, Array]:
        """The same, of `p` of shape `(N, D)`."""
        return p @ self.pairs.score, p @ self.pairs.cost


def sums_of(data: Judged, domains: Sequence[str], names: Sequence[str]) -> Any:
    """The sums that a ledger of judged prompts has whose domains are known: `(D, E, 9)`."""
    place = {name: column for column, name in enumerate(names)}
    columns = np.array([place[domain] for domain in domains])
    judged, priced = ~np.isnan(data.scores), ~np.isnan(data.costs)
    scores, costs = np.where(judged, data.scores, 0), np.where(priced, data.costs, 0)
    units = {
        "n": judged,
        "score": scores,
        "score_squared": scores**2,
        "n_cost": priced,
        "cost": costs * (COST_ONE / ONE),
    }
    sums = np.zeros((len(names), scores.shape[1], len(COLUMNS)), dtype=np.int64)
    for name, values in units.items():
        np.add.at(sums[..., COLUMNS.index(name)], columns, np.rint(values * ONE).astype(np.int64))
    return sums
