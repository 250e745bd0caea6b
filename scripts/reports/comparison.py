"""What `ir3de benchmark` measures of a router on a data set, in the shapes that `results.json` has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from ir3de.scripts.data.rows import Row
from ir3de.scripts.data.sampling import sample_per_domain
from ir3de.scripts.data.splits import DataSet
from ir3de.scripts.metrics.measures import (
    Array,
    Bin,
    auroc,
    calibration_error,
    latency,
    macro_accuracy,
    recalls,
    reliability,
    standard_error,
)
from ir3de.scripts.routers.base import Router, TellsFamiliarity


class SourceFigures(TypedDict):
    """
    Of the prompts of one domain and source.

    Args:
        accuracy (`float`): how many were routed right, 0 to 1.
        prompts (`int`): how many there are.
    """

    accuracy: float
    prompts: int


class _Measured(TypedDict):
    prompts: int
    macro_accuracy: float
    standard_error: float
    micro_accuracy: float
    calibration_error: float
    reliability: list[Bin]
    domains: dict[str, float]
    sources: dict[str, SourceFigures]


class SplitFigures(_Measured, total=False):
    """
    Of a router on a split.

    Args:
        prompts (`int`): that were routed.
        macro_accuracy (`float`): mean recall of the domains, 0 to 1.
        standard_error (`float`): of the macro accuracy.
        micro_accuracy (`float`): how many were routed right, 0 to 1.
        calibration_error (`float`): expected calibration error, 0 to 1.
        reliability (`list[Bin]`): what that is made of.
        domains (`dict[str, float]`): the recall of each domain.
        sources (`dict[str, SourceFigures]`): by domain and source.
        out_of_scope_auroc (`float`, *optional*): where the split has prompts of no domain.
    """

    out_of_scope_auroc: float


class Fitted(TypedDict):
    """
    Of a router on a data set.

    Args:
        choice (`str`): what it chose on held-out prompts.
        bytes (`int`): of what it routes with.
        latency (`dict`): seconds a prompt, `single` and in a `batch`, of `routing` and of `tokenizing` alone.
        fit_seconds (`float`): what fitting took, or would have without a cache.
        splits (`dict[str, SplitFigures]`): by split.
    """

    choice: str
    bytes: int
    latency: dict[str, dict[str, float]]
    fit_seconds: float
    splits: dict[str, SplitFigures]


class Run(Fitted):
    """Of one `router` on the data set called `data`."""

    data: str
    router: str


class FewShot(TypedDict):
    """
    Of a router that was fitted to few prompts.

    Args:
        data (`str`): name of the data set.
        router (`str`): its name.
        shots (`int`): training prompts a domain.
        seed (`int`): of the sample of these.
        choice (`str`): what it chose on held-out prompts.
        macro_accuracy (`dict[str, float]`): by split, 0 to 1.
    """

    data: str
    router: str
    shots: int
    seed: int
    choice: str
    macro_accuracy: dict[str, float]


class SplitAbout(TypedDict):
    """Numbers of a split: its `prompts`, those `outside` of all domains, and by domain those `left_out`."""

    prompts: int
    outside: int
    left_out: dict[str, int]


class DataAbout(TypedDict):
    """A data set: its `name`, its numbers of `domains` and of `train`ing prompts, and its `splits`."""

    name: str
    domains: int
    train: int
    splits: dict[str, SplitAbout]


class Settings(TypedDict):
    """
    What a report says of the run.

    Args:
        routers (`list[str]`): that are compared.
        encoder (`str`): sentence encoder.
        embeddings (`str`): of our routers.
        max_train_per_domain (`int`): training prompts that an encoder reads; 0: all.
        max_train (`int`): training prompts a domain for every router; 0: all.
        max_test (`int`): prompts of a test split; 0: all.
        threads (`int`): of the CPU.
        machine (`str`): in words.
        packages (`dict[str, str]`): their versions.
    """

    routers: list[str]
    encoder: str
    embeddings: str
    max_train_per_domain: int
    max_train: int
    max_test: int
    threads: int
    machine: str
    packages: dict[str, str]


class Results(TypedDict):
    """What `results.json` holds: `settings`, `data` sets, `runs`, and runs on few prompts."""

    settings: Settings
    data: list[DataAbout]
    runs: list[Run]
    few_shot: list[FewShot]


def describe_data(data: DataSet) -> DataAbout:
    """What the report says of a data set."""
    splits: dict[str, SplitAbout] = {
        split: {"prompts": len(rows), "outside": len(data.outside[split]), "left_out": data.left_out[split]}
        for split, rows in data.tests.items()
    }
    return {"name": data.name, "domains": len(data.domains), "train": len(data.train), "splits": splits}


def compare(router: Router, data: DataSet, tokenizer: Any) -> Fitted:
    """Fits a router and measures it on every split.

    Args:
        router ([`Router`]): to fit.
        data ([`DataSet`]): to fit to and to measure on.
        tokenizer (`PreTrainedTokenizerBase`): whose work is the yardstick of what a route costs.
    """
    started = time.perf_counter()
    router.fit([row.text for row in data.train], [row.domain for row in data.train])
    fit_seconds = time.perf_counter() - started
    splits = {split: measure(router, rows, data.outside[split]) for split, rows in data.tests.items()}
    texts = [row.text for row in next(iter(data.tests.values()))]

    def tokenize(batch: list[str]) -> object:
        """Tokenizes as a route does."""
        return tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)

    seconds = latency({"routing": router.route, "tokenizing": tokenize}, texts)
    return {
        "choice": router.choice,
        "bytes": router.nbytes,
        "latency": seconds,
        "fit_seconds": fit_seconds + router.encoded * seconds["batch"]["routing"],  # what the cache saved
        "splits": splits,
    }


def measure(router: Router, rows: Sequence[Row], outside: Sequence[Row]) -> SplitFigures:
    """Accuracy, calibration and, where there are rows outside of all domains, how well these are told apart."""
    p = router.scores([row.text for row in rows], cached=True)
    labels = np.searchsorted(router.domains, [row.domain for row in rows])
    right = p.argmax(axis=1) == labels
    bins = reliability(p.max(axis=1), right)
    figures: SplitFigures = {
        "prompts": len(rows),
        "macro_accuracy": macro_accuracy(labels, p),
        "standard_error": standard_error(labels, p),
        "micro_accuracy": float(right.mean()),
        "calibration_error": calibration_error(bins),
        "reliability": bins,
        "domains": {router.domains[label]: recall for label, recall in recalls(labels, p).items()},
        "sources": measure_sources(rows, right),
    }
    if outside:
        figures["out_of_scope_auroc"] = _out_of_scope_auroc(router, rows, outside, p)
    return figures


def _out_of_scope_auroc(router: Router, rows: Sequence[Row], outside: Sequence[Row], p: Array) -> float:
    """How well a router tells its domains' prompts from others: by familiarity, or else by its largest probability.

    Args:
        router ([`Router`]): that is fitted.
        rows (`Sequence[Row]`): prompts of its domains.
        outside (`Sequence[Row]`): prompts of none.
        p (`np.ndarray` of shape `(rows, domains)`): its probabilities of the former.
    """
    texts, others = [row.text for row in rows], [row.text for row in outside]
    if isinstance(router, TellsFamiliarity):
        near, far = router.familiarity(texts), router.familiarity(others)
        if near is not None and far is not None:
            return auroc(near, far)
    return auroc(p.max(axis=1), router.scores(others, cached=True).max(axis=1))


def measure_sources(rows: Sequence[Row], right: NDArray[np.bool_]) -> dict[str, SourceFigures]:
    """Accuracy and number of prompts of each domain and source."""
    sources: dict[str, list[bool]] = {}
    for row, value in zip(rows, right, strict=True):
        sources.setdefault(f"{row.domain}/{row.source}", []).append(bool(value))
    return {
        name: {"accuracy": float(np.mean(values)), "prompts": len(values)} for name, values in sorted(sources.items())
    }


def measure_few_shot(router: Router, data: DataSet, shots: int, seed: int) -> tuple[str, dict[str, float]]:
    """Fits to a sample of so many training prompts a domain.

    Returns:
        `tuple[str, dict[str, float]]`: what the router chose, and its macro accuracy by split.
    """
    kept = sample_per_domain([row.domain for row in data.train], shots, seed)
    rows = [data.train[i] for i in kept]
    router.fit([row.text for row in rows], [row.domain for row in rows])
    accuracies = {}
    for split, tests in data.tests.items():
        labels = np.searchsorted(router.domains, [row.domain for row in tests])
        accuracies[split] = macro_accuracy(labels, router.scores([row.text for row in tests], cached=True))
    return router.choice, accuracies
