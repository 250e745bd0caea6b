"""Normalised performance: how close a router comes to every domain's own expert, in percent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ir3de.scripts.metrics.measures import Array, Integers

DRAWS = 2000  # of the bootstrap
COVERAGE = 95  # percent


@dataclass
class Losses:
    """
    What prompts cost experts.

    Args:
        domains (`list[str]`): of each prompt.
        experts (`list[str]`): the columns; each domain's own expert has the domain's name.
        nats (`np.ndarray` of shape `(prompts, experts)`): negative log-likelihoods; NaN where an expert failed.
        tokens (`np.ndarray` of shape `(prompts, experts)`): how many tokens that is of.
        seconds (`dict[str, float]`): that each expert took.
    """

    domains: list[str]
    experts: list[str]
    nats: Array
    tokens: Integers
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def own(self) -> NDArray[np.intp]:
        """Index of each prompt's own expert."""
        return np.array([self.experts.index(domain) for domain in self.domains])

    def routed(self, p: Array) -> Array:
        """Expected nats of each prompt, where expert e reads it with probability `p[prompt, e]`."""
        expected: Array = np.where(p > 0, p * self.nats, 0).sum(axis=1)
        return expected


class Perplexity(TypedDict):
    """A domain's `perplexity` by routing, and its expert's over that, `normalised`, in percent."""

    perplexity: float
    normalised: float


class Normalised(TypedDict):
    """
    How close routing comes to every domain's own expert; NaN where an expert failed that is needed.

    Args:
        normalised (`float`): percent, the mean of the domains.
        interval (`list[float]`): of 95 %, its two ends, by a bootstrap over the prompts of each domain.
        domains (`dict[str, Perplexity]`): by name.
    """

    normalised: float
    interval: list[float]
    domains: dict[str, Perplexity]


class DomainScores(TypedDict):
    """A domain's score `routed` and by its `own` expert, and their ratio, `normalised`, in percent; NaN without one."""

    routed: float
    own: float
    normalised: float


class NormalisedScores(TypedDict):
    """`normalised`, the mean in percent of the domains that have a ratio, and the `domains`."""

    normalised: float
    domains: dict[str, DomainScores]


def normalised(losses: Losses, p: Array) -> Normalised:
    """Perplexity of each domain's own expert / perplexity by routing, in percent.

    A domain's perplexity is exp(nats / tokens), both summed over its prompts. Where routing is random, the nats are
    expected ones. Experts that cut text into other tokens are compared all the same: the sums of nats are of the same
    text, and the tokens are those of the domain's own expert.

    Args:
        losses ([`Losses`]): of prompts and experts.
        p (`np.ndarray` of shape `(prompts, experts)`): with which probability each expert reads each prompt.
    """
    own, domains = losses.own, np.array(losses.domains)
    rows = np.arange(len(own))
    nats, tokens = losses.routed(p), losses.tokens[rows, own]
    gaps = nats - losses.nats[rows, own]
    by_domain: dict[str, Perplexity] = {}
    draws, random = [], np.random.default_rng(0)
    for domain in sorted(set(losses.domains)):
        of = domains == domain
        perplexity = float(np.exp(nats[of].sum() / tokens[of].sum())) if tokens[of].sum() else float("nan")
        by_domain[domain] = {"perplexity": perplexity, "normalised": float(_ratio(gaps[of], tokens[of]))}
        again = random.integers(of.sum(), size=(DRAWS, of.sum()))  # prompts with replacement
        draws.append(_ratio(gaps[of][again], tokens[of][again]))
    tail = (100 - COVERAGE) / 2
    return {
        "normalised": float(np.mean([figures["normalised"] for figures in by_domain.values()])),
        "interval": np.percentile(np.mean(draws, axis=0), [tail, 100 - tail]).tolist(),
        "domains": by_domain,
    }


def _ratio(gaps: Array, tokens: Integers) -> Array:
    """exp(nats of the own expert / tokens) / exp(nats by routing / tokens), in percent, over the last axis."""
    with np.errstate(invalid="ignore"):  # nothing was read: NaN
        ratio: Array = 100 * np.exp(-gaps.sum(axis=-1) / tokens.sum(axis=-1))
        return ratio


def normalised_scores(routed: dict[str, float], own: dict[str, float]) -> NormalisedScores:
    """Score by routing / score of the domain's expert, in percent, of tasks.

    Args:
        routed (`dict[str, float]`): a score a domain, by routing.
        own (`dict[str, float]`): the same, by the domain's own expert; where that is 0 there is no ratio.
    """
    domains: dict[str, DomainScores] = {
        name: {
            "routed": routed[name],
            "own": score,
            "normalised": 100 * routed[name] / score if score else float("nan"),
        }
        for name, score in own.items()
    }
    ratios = [figures["normalised"] for figures in domains.values()]
    known = [ratio for ratio in ratios if not np.isnan(ratio)]
    return {"normalised": float(np.mean(known)) if known else float("nan"), "domains": domains}
