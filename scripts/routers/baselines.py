"""Routers to compare with: each takes labelled prompts and gives probabilities of the domains.

Hyper-parameters, and the temperature that calibrates the probabilities, come from a held-out part of the training
prompts; then the router is fitted to all of them.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import torch
from tqdm.auto import tqdm

from ir3de.scripts.metrics.measures import macro_accuracy
from ir3de.scripts.routers.encoders import Encoder, public_name

MODEM_ENCODER = "microsoft/deberta-v3-large"
HELD_OUT_EVERY = 5
_TEMPERATURES = np.geomspace(0.02, 20, 121)


class Router(Protocol):
    """
    What a comparison asks of a router.

    Attributes:
        domains (`list[str]`): sorted, once fitted.
        choice (`str`): what was chosen on held-out prompts, for people to read.
        encoded (`int`): training prompts whose encoding may have come from a cache, so that fitting took less time.
        nbytes (`int`): size of what is kept to route with, tokenizer excluded.
    """

    domains: list[str]
    choice: str
    encoded: int

    @property
    def nbytes(self) -> int:
        """See above."""

    def fit(self, texts: Sequence[str], domains: Sequence[str]) -> Any:
        """Fits to labelled prompts."""

    def route(self, texts: Sequence[str]) -> Any:
        """Routes prompts as a user would have it done; this is what is timed."""

    def scores(self, texts: Sequence[str], cached: bool = False) -> Any:
        """Probabilities, an `np.ndarray` of shape `(texts, domains)`; `cached` where speed is not the question."""


@dataclass
class Options:
    """
    What baselines may be told.

    Args:
        encoder (`str`): Hub id or folder of the sentence encoder.
        modem_encoder (`str`, *optional*): of the encoder to fine-tune; by default DeBERTa-v3 on a GPU, and the sentence
            encoder where there is none, or where DeBERTa cannot be had.
        max_train (`int`, *optional*): training prompts a domain that an encoder reads.
        max_tokens (`int`): of a prompt that an encoder reads which is fine-tuned.
        seed (`int`): of whatever is random.
    """

    encoder: str
    modem_encoder: str | None = None
    max_train: int | None = 500
    max_tokens: int = 256
    seed: int = 0

    @property
    def sentence_encoder(self) -> Encoder:
        """The encoder, loaded on first use."""
        return _load_encoder(self.encoder)


@lru_cache(maxsize=1)
def _load_encoder(name: str) -> Encoder:
    return Encoder(name)


class Baseline:
    """
    A router made of features and an estimator with `fit` and `predict_proba`.

    Args:
        options ([`Options`]): of the run.
    """

    grid: tuple[Any, ...] = (None,)
    max_train: int | None = None
    refit = True

    def __init__(self, options: Options) -> None:
        self.options = options
        self.domains: list[str] = []
        self.choice = ""
        self.encoded = 0
        self.temperature = 1.0
        self.model: Any = None

    def estimator(self, value: Any) -> Any:
        """An estimator with the hyper-parameters `value`, one of `grid`."""
        raise NotImplementedError

    def features(self, texts: Sequence[str], cached: bool = False) -> Any:
        """What the estimator reads; with `cached`, from the cache if there is one."""
        return np.array(texts, dtype=object)

    @property
    def nbytes(self) -> int:
        """Bytes of the fitted estimator."""
        return len(pickle.dumps(self.model))

    def fit(self, texts: Sequence[str], domains: Sequence[str]) -> Baseline:
        """Chooses on a held-out part, calibrates there, and fits to everything.

        Args:
            texts (`Sequence[str]`): prompts.
            domains (`Sequence[str]`): the domain of each.
        """
        kept = sample_per_domain(domains, self.max_train, self.options.seed)
        texts, domains = [texts[i] for i in kept], [domains[i] for i in kept]
        self.domains = sorted(set(domains))
        labels = np.searchsorted(self.domains, domains)
        X, held = self.features(texts, cached=True), held_out(labels)
        value = self.grid[0]
        if held.any():
            value, p, self.model = self._choose(X, labels, held)
            self.temperature = fit_temperature(p, labels[held])
        if self.refit or not held.any():
            self.model = self._train(value, X, labels)
        self.choice = "" if value is None else str(value)
        return self

    def _train(self, value: Any, X: Any, labels: Any) -> Any:
        """A fitted estimator; scikit-learn's may stop before they have converged without saying so each time."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(failed to converge|hasn't converged).*")
            return self.estimator(value).fit(X, labels)

    def _choose(self, X: Any, labels: Any, held: Any) -> tuple[Any, Any, Any]:
        """The first of the best values, its probabilities of the held-out prompts, and the estimator."""
        trials = []
        for value in tqdm(self.grid, desc="Choosing", unit=" fits", disable=None, leave=False):
            model = self._train(value, X[~held], labels[~held])
            p = model.predict_proba(X[held])
            trials.append((macro_accuracy(labels[held], p), value, p, model))
        return max(trials, key=lambda trial: trial[0])[1:]

    def route(self, texts: Sequence[str]) -> Any:
        """The probabilities, which are all that it says."""
        return self.scores(texts)

    def scores(self, texts: Sequence[str], cached: bool = False) -> Any:
        """Calibrated probabilities of shape `(texts, domains)`."""
        return temper(self.model.predict_proba(self.features(texts, cached)), self.temperature)


class RandomRouter(Baseline):
    """Any expert, each as likely: the floor."""

    def fit(self, texts: Sequence[str], domains: Sequence[str]) -> RandomRouter:
        """Takes the domains' names."""
        self.domains = sorted(set(domains))
        self.random = np.random.default_rng(self.options.seed)
        return self

    def scores(self, texts: Sequence[str], cached: bool = False) -> Any:
        """Equal but for a trace of noise that decides."""
        p = 1 + 1e-6 * self.random.random((len(texts), len(self.domains)))
        return p / p.sum(axis=1, keepdims=True)


class TfidfRegression(Baseline):
    """Logistic regression on TF-IDF of words and pairs of words."""

    grid = (1, 10, 100)

    def estimator(self, value: Any) -> Any:
        """A scikit-learn pipeline."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline

        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
        return make_pipeline(words, _logistic_regression(value))


class BagOfWordsMLP(Baseline):
    """PolyRouter's classifier: a network with one hidden layer on the counts of words."""

    grid = (64, 256)

    def estimator(self, value: Any) -> Any:
        """A scikit-learn pipeline."""
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline

        network = MLPClassifier((value,), max_iter=15, random_state=self.options.seed, tol=1e-3, n_iter_no_change=3)
        return make_pipeline(CountVectorizer(max_features=20_000, dtype=np.float32), network)


class EncoderBaseline(Baseline):
    """A router on the vectors of a sentence encoder."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.max_train = options.max_train
        self.encoder = options.sentence_encoder

    def features(self, texts: Sequence[str], cached: bool = False) -> Any:
        """Unit vectors."""
        self.encoded += len(texts) * (self.model is None)
        return self.encoder.cached(texts) if cached else self.encoder.encode(texts)

    @property
    def nbytes(self) -> int:
        """Bytes of estimator and encoder."""
        return super().nbytes + self.encoder.nbytes


class EncoderRegression(EncoderBaseline):
    """Logistic regression on a sentence encoder."""

    grid = (1, 10, 100, 1000)

    def estimator(self, value: Any) -> Any:
        """A scikit-learn classifier."""
        return _logistic_regression(value)


class EncoderNeighbours(EncoderBaseline):
    """
    The nearest training prompts vote.

    Args:
        options ([`Options`]): of the run.
        k (`int`): how many.
    """

    def __init__(self, options: Options, k: int) -> None:
        super().__init__(options)
        self.k = k

    def estimator(self, value: Any) -> Any:
        """A kNN classifier."""
        return NearestNeighbours(self.k)


class NearestNeighbours:
    """
    k nearest neighbours by cosine; a tie goes to the nearer ones.

    The vote's distribution is mixed with the uniform one in the measure that the neighbours are far, so that a prompt
    unlike any other has a low probability.

    Args:
        k (`int`): how many.
    """

    def __init__(self, k: int) -> None:
        self.k = k

    def fit(self, X: Any, labels: Any) -> NearestNeighbours:
        """Keeps unit vectors of shape `(N, size)` and their labels."""
        self.X, self.Y = X, np.eye(labels.max() + 1)[labels]
        return self

    def predict_proba(self, X: Any) -> Any:
        """Probabilities of shape `(N, domains)`."""
        return np.concatenate([self._vote(rows) for rows in np.array_split(X, 1 + len(X) // 1024)])

    def _vote(self, X: Any) -> Any:
        similarities, k = X @ self.X.T, min(self.k, len(self.X))
        nearest = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(similarities, nearest, axis=1).clip(0, 1)
        votes = np.einsum("nk,nkd->nd", 1 + 1e-3 * near, self.Y[nearest])
        trust = near.mean(axis=1, keepdims=True)
        return trust * votes / votes.sum(axis=1, keepdims=True) + (1 - trust) / self.Y.shape[1]


class FineTunedEncoder(Baseline):
    """MoDEM's router: an encoder fine-tuned to classify prompts by domain."""

    refit = False  # one training is enough to wait for

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.max_train = options.max_train

    def estimator(self, value: Any) -> Any:
        """A sequence classifier of transformers."""
        from ir3de.scripts.routers.fine_tuning import SequenceClassifier

        make = partial(SequenceClassifier, seed=self.options.seed, max_tokens=self.options.max_tokens)
        if self.options.modem_encoder is not None or not torch.cuda.is_available():
            return make(self.options.modem_encoder or self.options.encoder)
        try:
            return make(MODEM_ENCODER)
        except OSError:
            print(f"{MODEM_ENCODER} cannot be had; the router modem fine-tunes {self.options.encoder} instead.")
            return make(self.options.encoder)

    def fit(self, texts: Sequence[str], domains: Sequence[str]) -> Baseline:
        """Fine-tunes once, without the held-out part, and says which encoder it was."""
        super().fit(texts, domains)
        self.choice = f"{public_name(self.model.name)}, fine-tuned"
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of the fine-tuned weights."""
        return self.model.nbytes


def _logistic_regression(C: float) -> Any:
    """Balanced, because accuracy is averaged over domains."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, class_weight="balanced", max_iter=200)


def sample_per_domain(domains: Sequence[str], most: int | None, seed: int) -> list[int]:
    """Indices of at most `most` random rows of each domain; a smaller sample of a seed is part of a larger one."""
    if most is None:
        return list(range(len(domains)))
    taken: dict[str, int] = {}
    kept = []
    for i in np.random.default_rng(seed).permutation(len(domains)).tolist():
        taken[domains[i]] = taken.get(domains[i], 0) + 1
        if taken[domains[i]] <= most:
            kept.append(i)
    return kept


def held_out(labels: Any) -> Any:
    """Marks every fifth prompt of a domain, and the second of a smaller one, to choose on."""
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        held[np.flatnonzero(labels == label)[1::HELD_OUT_EVERY]] = True
    return held


def temper(p: Any, temperature: float) -> Any:
    """Softmax of log p / temperature."""
    logits = np.log(np.clip(p, 1e-9, None)) / temperature
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def fit_temperature(p: Any, labels: Any) -> float:
    """The temperature of lowest cross-entropy; 1 where nothing is held out."""
    if not len(labels):
        return 1.0
    rows = np.arange(len(labels))
    losses = [-np.log(temper(p, value)[rows, labels].clip(1e-12)).mean() for value in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


BASELINES: dict[str, Callable[[Options], Baseline]] = {
    "random": RandomRouter,
    "tfidf": TfidfRegression,
    "bow-mlp": BagOfWordsMLP,
    "knn-1": lambda options: EncoderNeighbours(options, 1),
    "knn-5": lambda options: EncoderNeighbours(options, 5),
    "knn-10": lambda options: EncoderNeighbours(options, 10),
    "encoder-lr": EncoderRegression,
    "modem": FineTunedEncoder,
}
