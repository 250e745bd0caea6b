"""Other projects' routers, for those who have them installed; neither is an extra of ours.

As of semantic-router 1.1.1 and adaptive-classifier 0.3.1, the latter's own requirements exclude current transformers:
install both with `pip install --no-deps`, beside `faiss-cpu` and what their imports then ask for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ir3de.scripts.metrics.measures import Array, Integers
from ir3de.scripts.routers.base import Options
from ir3de.scripts.routers.baselines import Baseline, Estimator, Features


def _require(package: str) -> None:
    """Raises ImportError where a router's package is not installed."""
    if importlib.util.find_spec(package) is None:
        name = package.replace("_", "-")
        raise ImportError(
            f"The router {name} needs its package: see scripts/routers/peers.py, or leave it out of --routers."
        )


class SemanticRouter(Baseline):
    """semantic-router's `IndexedRouter`, as it comes: the five nearest prompts, on the sentence encoder."""

    def __init__(self, options: Options) -> None:
        _require("semantic_router")
        super().__init__(options)
        self.max_train = options.max_train
        self.encoder = options.sentence_encoder
        self.encode: Callable[[Sequence[str]], Array] = self.encoder.encode

    def features(self, texts: Sequence[str], cached: bool = False) -> Features:
        """The texts; the router encodes them itself, or is given their vectors from the cache."""
        if cached:
            self.encoder.cached(texts)
        if self.model is None:  # fitting, where vectors may come from the cache
            self.encoded += len(texts)
        self.encode = self.encoder.cached if cached else self.encoder.encode
        return super().features(texts)

    def estimator(self, value: int) -> Estimator:
        """The router behind scikit-learn's interface."""
        return _SemanticRouter(self)

    @property
    def nbytes(self) -> int:
        """Bytes of the encoder and of the prompts' vectors."""
        return int(self.encoder.nbytes + self.model.index.index.nbytes)


class _SemanticRouter:
    def __init__(self, owner: SemanticRouter) -> None:
        from semantic_router.encoders import DenseEncoder

        class Encoder(DenseEncoder):  # type: ignore[misc]
            """The run's encoder as semantic-router asks for it."""

            def __call__(self, docs: list[Any]) -> list[list[float]]:
                return owner.encode(docs).tolist()  # type: ignore[no-any-return]

        self.domains, self.encoder = owner.domains, Encoder(name="sentence encoder")

    def fit(self, X: Features, labels: Integers) -> _SemanticRouter:
        """Gives each domain's prompts to the router as a route."""
        from semantic_router.route import Route
        from semantic_router.routers import IndexedRouter

        routes = [Route(name=name, utterances=X[labels == number].tolist()) for number, name in enumerate(self.domains)]
        self.router = IndexedRouter(self.encoder, routes)
        return self

    @property
    def index(self) -> Any:
        """The router's index of vectors."""
        return self.router.index

    def predict_proba(self, X: Features) -> Array:
        """The routes' confidences, made to sum to 1: `(texts, domains)`."""
        choices = [{choice.name: choice.confidence for choice in self.router(text, limit=None)} for text in X]
        return _shares([[choice[name] for name in self.domains] for choice in choices])


class AdaptiveClassifier(Baseline):
    """adaptive-classifier, as it comes: prototypes and a small network, on the sentence encoder."""

    refit = False  # one training is enough to wait for

    def __init__(self, options: Options) -> None:
        _require("adaptive_classifier")
        super().__init__(options)
        self.max_train = options.max_train

    def estimator(self, value: int) -> Estimator:
        """The classifier behind scikit-learn's interface."""
        return _AdaptiveClassifier(self.options, self.domains)

    @property
    def nbytes(self) -> int:
        """Bytes of its encoder and its examples' vectors."""
        return int(self.model.nbytes)


class _AdaptiveClassifier:
    def __init__(self, options: Options, domains: list[str]) -> None:
        from adaptive_classifier import AdaptiveClassifier as Classifier

        self.domains = domains
        self.classifier = Classifier(options.encoder, device="cpu", seed=options.seed, use_onnx=False)

    def fit(self, X: Features, labels: Integers) -> _AdaptiveClassifier:
        """Gives the classifier the prompts as examples."""
        self.classifier.add_examples(X.tolist(), [self.domains[label] for label in labels])
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of the encoder and of the examples' vectors."""
        total = sum(int(weight.nbytes) for weight in self.classifier.model.parameters())
        for examples in self.classifier.memory.examples.values():
            total += sum(int(example.embedding.nbytes) for example in examples)
        return total

    def predict_proba(self, X: Features) -> Array:
        """The classifier's scores, made to sum to 1: `(texts, domains)`."""
        predictions = self.classifier.predict_batch(X.tolist(), k=len(self.domains))
        return _shares([[dict(p).get(name, 0.0) for name in self.domains] for p in predictions])


def _shares(scores: Sequence[Sequence[float]]) -> Array:
    """Scores of prompts made to sum to 1 a prompt, none of them 0."""
    positive = np.array(scores, dtype=float).clip(min=1e-6)
    shares: Array = positive / positive.sum(axis=1, keepdims=True)
    return shares


PEERS = {"semantic-router": SemanticRouter, "adaptive-classifier": AdaptiveClassifier}
