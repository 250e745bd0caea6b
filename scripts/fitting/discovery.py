"""Domains for prompts that have no labels: clusters, each named by the words that tell it apart.

How many there are is chosen by outcomes: the number whose router, fitted on four fifths of the prompts, comes closest
to what all experts scored on the rest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ir3de.batch_ir3de import Prompts, batches, prompt_weights, weighted_sums
from ir3de.prompts_ir3de import token_ids_of
from ir3de.scripts.data.judged import Judged
from ir3de.scripts.fitting.options import FitOptions
from ir3de.scripts.metrics.frontier import chosen
from ir3de.scripts.metrics.measures import Array, Integers
from ir3de.scripts.reports.progress import progress
from ir3de.scripts.routers.by_outcomes import DomainsByOutcomes, folds
from ir3de.token_router_ir3de import FeatureMap

NUMBERS = (8, 16, 32, 64)
LEAST = 10  # prompts of a domain; smaller clusters join the nearest larger one
_WORD = re.compile(r"[A-Za-z][A-Za-z]{2,19}")
_SMOOTHING = 0.5  # prompts, added to those that a word occurs in


class Tried(NamedTuple):
    """
    A number of domains that was tried.

    Args:
        number (`int`): of clusters that were asked for.
        error (`float`): mean squared error of the expected scores on held-out prompts.
        score (`float`): mean of what the chosen experts scored there.
    """

    number: int
    error: float
    score: float


def discover(
    data: Judged, tokenizer: Any, embeddings: torch.Tensor, number: int | None = None, max_length: int = 1024
) -> tuple[list[str], list[Tried]]:
    """A domain for each prompt.

    Args:
        data ([`Judged`]): prompts and their scores; its groups are not looked at.
        tokenizer (`PreTrainedTokenizerBase`): of the embeddings.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
        number (`int`, *optional*): of domains, at most; by default chosen by outcomes.
        max_length (`int`): tokens of a prompt that count.

    Returns:
        the domains' names, a prompt each, and what was tried where the number was chosen.

    Raises:
        ValueError: there are too few prompts.
    """
    rows = prompt_rows(data.texts, tokenizer, embeddings, max_length)
    if len(rows) < 2 * LEAST:
        raise ValueError(f"Domains are discovered among at least {2 * LEAST} prompts; there are {len(rows)}.")
    tried: list[Tried] = []
    if number is None:
        numbers = [each for each in NUMBERS if each * LEAST <= len(rows)] or [2]
        tried = [_try(each, data, rows, tokenizer, embeddings) for each in progress(numbers, "Discovering", "numbers")]
        number = min(tried, key=lambda each: (each.error, each.number)).number
    return named(data.texts, clusters(rows, number)), tried


def prompt_rows(texts: Sequence[str], tokenizer: Any, embeddings: torch.Tensor, max_length: int) -> Array:
    """Rows of prompts as the router has them, less their mean and of length one: `(N, h)`."""
    features = FeatureMap("unit").table(embeddings)
    prompts = Prompts.of(token_ids_of(tokenizer, list(texts), max_length))
    if prompts.lengths.numel() and int(prompts.lengths.min()) == 0:
        raise ValueError(f"Prompt {int(prompts.lengths.argmin())} has no tokens: leave it out.")
    rows = torch.cat([weighted_sums(features, part, prompt_weights(part)) for part in batches(prompts)])
    return F.normalize(rows - rows.mean(dim=0), dim=1).numpy()


def clusters(rows: Array, number: int) -> Integers:
    """The cluster of each row, `(N,)`, by k-means; of small ones the rows go to the nearest of the others."""
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ImportError('Discovering domains needs scikit-learn: `pip install "ir3de[benchmark]"`.') from error
    found = KMeans(min(number, len(rows)), n_init=3, random_state=0).fit(rows)
    sizes = np.bincount(found.labels_, minlength=len(found.cluster_centers_))
    large = np.flatnonzero(sizes >= LEAST)
    if len(large) < 2:
        large = np.argsort(-sizes, kind="stable")[:2]
    near = ((rows[:, None] - found.cluster_centers_[None, large]) ** 2).sum(axis=2).argmin(axis=1)
    labels: Integers = np.where(np.isin(found.labels_, large), found.labels_, large[near])
    return labels


def named(texts: Sequence[str], labels: Integers) -> list[str]:
    """The name of each prompt's cluster: its two most telling words, by how many more of its prompts they occur in."""
    counts: dict[int, Counter[str]] = {int(label): Counter() for label in np.unique(labels)}
    for text, label in zip(texts, labels.tolist(), strict=True):
        counts[label].update({word.lower() for word in _WORD.findall(text)})
    sizes = np.bincount(labels)
    everywhere = sum(counts.values(), Counter())
    names: dict[int, str] = {}
    for label, words in sorted(counts.items()):
        inside, outside = sizes[label] + 1, len(labels) - sizes[label] + 1

        def telling(word: str, words: Counter[str] = words, inside: int = inside, outside: int = outside) -> float:
            """How much of the cluster a word is in, times how much likelier it is there."""
            share = (words[word] + _SMOOTHING) / inside
            other = (everywhere[word] - words[word] + _SMOOTHING) / outside
            return float(share * np.log(share / other))

        best = sorted(words, key=lambda word: (-telling(word), word))[:2]
        names[label] = _apart("-".join(best) or "domain", set(names.values()))
    return [names[label] for label in labels.tolist()]


def _apart(name: str, taken: set[str]) -> str:
    """A name, with a number where it is taken."""
    number = 2
    made = name
    while made in taken:
        made, number = f"{name}-{number}", number + 1
    return made


def _try(number: int, data: Judged, rows: Array, tokenizer: Any, embeddings: torch.Tensor) -> Tried:
    """Fits a router on the clusters of four fifths of the prompts, and measures it on the others."""
    held = folds(len(rows)) == 0
    rest, away = data.take(np.flatnonzero(~held)), data.take(np.flatnonzero(held))
    labels = [f"cluster-{label}" for label in clusters(rows[~held], number)]
    ours = DomainsByOutcomes(tokenizer, embeddings, options=FitOptions(variant="prompt", feature_map="unit"))
    expected_scores, _ = ours.fit(rest, labels).expected(away.texts)
    best = chosen(away.scores, expected_scores.argmax(axis=1))
    return Tried(number, float(np.nanmean((expected_scores - away.scores) ** 2)), float(np.nanmean(best)))
