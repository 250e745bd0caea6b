"""Routers to compare with: each takes labelled prompts and gives probabilities of the domains.

Hyper-parameters, and the temperature that calibrates the probabilities, come from a held-out part of the training
prompts; then the router is fitted to all of them.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ir3de.route_selector_ir3de import probabilities
from ir3de.scripts.command import need
from ir3de.scripts.data.sampling import sample_per_domain
from ir3de.scripts.fitting.calibration import best_calibration
from ir3de.scripts.metrics.measures import Array, Integers, macro_accuracy
from ir3de.scripts.routers.base import Options
from ir3de.scripts.routers.encoders import public_name

MODEM_ENCODER = "microsoft/deberta-v3-large"
HELD_OUT_EVERY = 5
_TEMPERATURES = np.geomspace(0.02, 20, 121).tolist()

Features = NDArray[Any]  # a vector a prompt, or its text


class Estimator(Protocol):
    """What scikit-learn calls a classifier, as far as a router needs it."""

    def fit(self, X: Features, labels: Integers) -> Estimator:
        """Fits to a row a prompt and to the domains' numbers; returns itself."""

    def predict_proba(self, X: Features) -> Array:
        """Probabilities of shape `(prompts, domains)`."""


class Baseline:
    """
    A router made of features and an estimator with `fit` and `predict_proba`.

    Args:
        options ([`Options`]): of the run.

    Raises:
        ImportError: scikit-learn is not installed, and is needed.
    """

    on_sklearn = False  # whether it is made with scikit-learn
    grid: tuple[int, ...] = (0,)  # values of the one hyper-parameter that is chosen; where there is none, a single one
    max_train: int | None = None
    refit = True

    def __init__(self, options: Options) -> None:
        if self.on_sklearn:
            need("sklearn", "benchmark", "Routers such as tfidf need scikit-learn, or leave them out of --routers")
        self.options = options
        self.domains: list[str] = []
        self.choice = ""
        self.encoded = 0
        self.temperature = 1.0
        self.model: Any = None  # an [`Estimator`], once fitted

    def estimator(self, value: int) -> Estimator:
        """An estimator with the hyper-parameters `value`, one of `grid`."""
        raise NotImplementedError

    def features(self, texts: Sequence[str], cached: bool = False) -> Features:
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
        self.choice = str(value) if len(self.grid) > 1 else ""
        return self

    def _train(self, value: int, X: Features, labels: Integers) -> Estimator:
        """A fitted estimator; scikit-learn's may stop before they have converged without saying so each time."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(failed to converge|hasn't converged).*")
            return self.estimator(value).fit(X, labels)

    def _choose(self, X: Features, labels: Integers, held: NDArray[np.bool_]) -> tuple[int, Array, Estimator]:
        """The first of the best values, its probabilities of the held-out prompts, and the estimator."""
        accuracies, trials = [], []
        for value in tqdm(self.grid, desc="Choosing", unit=" fits", disable=None, leave=False):
            model = self._train(value, X[~held], labels[~held])
            p = model.predict_proba(X[held])
            accuracies.append(macro_accuracy(labels[held], p))
            trials.append((value, p, model))
        return trials[int(np.argmax(accuracies))]

    def route(self, texts: Sequence[str]) -> Array:
        """The probabilities, which are all that it says."""
        return self.scores(texts)

    def scores(self, texts: Sequence[str], cached: bool = False) -> Array:
        """Calibrated probabilities of shape `(texts, domains)`."""
        return temper(self.model.predict_proba(self.features(texts, cached)), self.temperature)


class RandomRouter(Baseline):
    """Any expert, each as likely: the floor."""

    def fit(self, texts: Sequence[str], domains: Sequence[str]) -> RandomRouter:
        """Takes the domains' names."""
        self.domains = sorted(set(domains))
        self.random = np.random.default_rng(self.options.seed)
        return self

    def scores(self, texts: Sequence[str], cached: bool = False) -> Array:
        """Equal but for a trace of noise that decides."""
        noisy = 1 + 1e-6 * self.random.random((len(texts), len(self.domains)))
        p: Array = noisy / noisy.sum(axis=1, keepdims=True)
        return p


class TfidfRegression(Baseline):
    """Logistic regression on TF-IDF of words and pairs of words."""

    on_sklearn = True
    grid = (1, 10, 100)

    def estimator(self, value: int) -> Estimator:
        """A scikit-learn pipeline."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline

        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
        pipeline: Estimator = make_pipeline(words, _logistic_regression(value))
        return pipeline


class BagOfWordsMLP(Baseline):
    """PolyRouter's classifier: a network with one hidden layer on the counts of words."""

    on_sklearn = True
    grid = (64, 256)

    def estimator(self, value: int) -> Estimator:
        """A scikit-learn pipeline."""
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline

        network = MLPClassifier((value,), max_iter=15, random_state=self.options.seed, tol=1e-3, n_iter_no_change=3)
        pipeline: Estimator = make_pipeline(CountVectorizer(max_features=20_000, dtype=np.float32), network)
        return pipeline


class EncoderBaseline(Baseline):
    """A router on the vectors of a sentence encoder."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.max_train = options.max_train
        self.encoder = options.sentence_encoder

    def features(self, texts: Sequence[str], cached: bool = False) -> Features:
        """Unit vectors."""
        if self.model is None:  # fitting, where vectors may come from the cache
            self.encoded += len(texts)
        return self.encoder.cached(texts) if cached else self.encoder.encode(texts)

    @property
    def nbytes(self) -> int:
        """Bytes of estimator and encoder."""
        return super().nbytes + self.encoder.nbytes


class EncoderRegression(EncoderBaseline):
    """Logistic regression on a sentence encoder."""

    on_sklearn = True
    grid = (1, 10, 100, 1000)

    def estimator(self, value: int) -> Estimator:
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

    def estimator(self, value: int) -> Estimator:
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

    def fit(self, X: Features, labels: Integers) -> NearestNeighbours:
        """Keeps unit vectors of shape `(N, size)` and their labels."""
        self.X, self.Y = X, np.eye(labels.max() + 1)[labels]
        return self

    def predict_proba(self, X: Features) -> Array:
        """Probabilities of shape `(N, domains)`."""
        parts = np.array_split(X, 1 + len(X) // 1024)  # a table of all similarities would be large
        return np.concatenate([self._vote(rows) for rows in parts])

    def _vote(self, X: Features) -> Array:
        """The nearest prompts' domains as probabilities, for rows that are few enough for one table."""
        similarities: Array = X @ self.X.T
        k = min(self.k, len(self.X))
        nearest = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(similarities, nearest, axis=1).clip(0, 1)
        votes = np.einsum("nk,nkd->nd", 1 + 1e-3 * near, self.Y[nearest])
        shares = votes / votes.sum(axis=1, keepdims=True)
        trust = near.mean(axis=1, keepdims=True)
        p: Array = trust * shares + (1 - trust) / self.Y.shape[1]
        return p


class FineTunedEncoder(Baseline):
    """MoDEM's router: an encoder fine-tuned to classify prompts by domain."""

    refit = False  # one training is enough to wait for

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.max_train = options.max_train

    def estimator(self, value: int) -> Estimator:
        """A sequence classifier of transformers."""
        from ir3de.scripts.routers.fine_tuning import SequenceClassifier

        make = partial(SequenceClassifier, seed=self.options.seed, max_tokens=self.options.max_tokens)
        if self.options.modem_encoder is not None or not torch.cuda.is_available():
            return make(self.options.modem_encoder or self.options.encoder)
        try:
            return make(MODEM_ENCODER)
        except OSError:
            print(f"{MODEM_ENCODER} cannot be loaded; the router modem fine-tunes {self.options.encoder} instead.")
            return make(self.options.encoder)

    def fit(self, texts: Sequence[str], domains: Sequence[str]) -> Baseline:
        """Fine-tunes once, without the held-out part, and says which encoder it was."""
        super().fit(texts, domains)
        self.choice = f"{public_name(self.model.name)}, fine-tuned"
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of the fine-tuned weights."""
        return int(self.model.nbytes)


def _logistic_regression(C: float) -> Estimator:
    """Balanced, because accuracy is averaged over domains."""
    from sklearn.linear_model import LogisticRegression

    made: Estimator = LogisticRegression(C=C, class_weight="balanced", max_iter=200)
    return made


def held_out(labels: Integers) -> NDArray[np.bool_]:
    """Marks every fifth prompt of a domain, and the second of a smaller one, to choose on."""
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        held[np.flatnonzero(labels == label)[1::HELD_OUT_EVERY]] = True
    return held


def temper(p: Array, temperature: float) -> Array:
    """Softmax of log p / temperature."""
    tempered: Array = probabilities(_logits(p), temperature).numpy()
    return tempered


def fit_temperature(p: Array, labels: Integers) -> float:
    """The temperature of lowest cross-entropy; 1 where nothing is held out."""
    if not len(labels):
        return 1.0
    return best_calibration(_logits(p), torch.from_numpy(labels), _TEMPERATURES)["temperature"]


def _logits(p: Array) -> torch.Tensor:
    return torch.from_numpy(np.log(np.clip(p, 1e-9, None)))


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
