"""How many of its domains' prompts a router loses when its W changes, from their sums alone: no prompt is needed.

A domain's sums give the mean m and the second moment C of its rows x. Its prompts' lead over another domain's column,
(w_own - w_other)^T x, has therefore the mean (w_own - w_other)^T m and a variance from C; as a sum over tokens it is
close to normal, so that Phi(-mean / deviation) of the prompts go to the other. Over all other domains this adds up to
at least what is lost (Boole's inequality), as far as leads are normal.

That is so of the prompts that W was solved from, whose leads are larger than those of prompts to come: each has drawn W
toward itself. How much tells its leverage h: had it been left out, its lead would be (lead - h) / (1 - h) (the
leave-one-out formula of ridge regression: Allen 1974; Hastie, Tibshirani and Friedman, The Elements of Statistical
Learning, equation 7.64). Both shares are estimated, with the mean h of a domain's prompts. Discriminant analysis has a
formula of the same kind, since without one prompt a domain's mean and covariance are others by terms of rank one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from .statistics_ir3de import DomainStatistics
from .token_router_ir3de import Problem

_MOST_LEVERAGE = 0.99  # below 1 in truth; an estimate over prompts of many lengths might not be


class Leads(NamedTuple):
    """
    By how much a domain's prompts score more in its column than in each.

    Args:
        mean, variance (`torch.Tensor` of shape `(D,)`): over its prompts, float64.
    """

    mean: torch.Tensor
    variance: torch.Tensor


class Solved(NamedTuple):
    """
    What W was solved with, as far as it tells how much of its own scores a row makes.

    Args:
        inverse (`torch.Tensor` of shape `(F, F)` or, with a bias, `(F + 1, F + 1)`): (A + lambda I)^-1, float64.
        weights (`Sequence[float]`): that a row of each domain has in A.
        targets (`Sequence[float]`): what each domain's leads were drawn to: 1, divided by what its column was.
    """

    inverse: torch.Tensor
    weights: Sequence[float]
    targets: Sequence[float]

    @classmethod
    def of(cls, problem: Problem, weights: Sequence[float]) -> Solved:
        """Of what W solves. Takes about as long as three solves, and the memory of two more A."""
        left, right = problem.equations
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(left))
        norms = (inverse @ right).norm(dim=0) if problem.normalize_columns else torch.ones(len(weights))
        return cls(inverse, weights, norms.reciprocal().tolist())

    def left_out(self, domain: DomainStatistics, kind: str, own: int, leads: Leads) -> Leads:
        """The leads of a domain's prompts, had each been left out of what W was solved from."""
        h = self._leverage(domain, kind, own)
        return Leads((leads.mean - h * self.targets[own]) / (1 - h), leads.variance / (1 - h) ** 2)

    def _leverage(self, domain: DomainStatistics, kind: str, own: int) -> float:
        """The mean h of a domain's prompts: weight * r^T (A + lambda I)^-1 r, where r is a prompt's row.

        Where rows are tokens, a prompt leaves with all its n tokens x. The score that is left then is that of the
        block's mean, with h = weight * s^T (A + lambda I)^-1 s / n, s the sum of x; and s / sqrt(n) is about the
        prompt's row, its column of ones being sqrt(n).
        """
        scale = torch.ones(domain.size, dtype=torch.float64)
        if kind == "tokens":
            scale[-1] = math.sqrt(_tokens_of_a_prompt(domain))
        A = domain.gram("prompts") * scale * scale.unsqueeze(1)
        width = len(self.inverse)
        h = self.weights[own] * float((A[:width, :width] * self.inverse).sum()) / domain.rows("prompts")
        return min(h, _MOST_LEVERAGE)


class Separated(NamedTuple):
    """
    What discriminant analysis was solved with: a lead over domain j is half of what x is farther from mu_j than from
    mu_own, in the metric (S + lambda I)^-1 of [`discriminant`].

    Args:
        inverse (`torch.Tensor` of shape `(F, F)`): (S + lambda I)^-1, float64.
    """

    inverse: torch.Tensor

    @classmethod
    def of(cls, problem: Problem) -> Separated:
        """Of the prompt rows' problem. Takes about as long as three solves, and the memory of two more A."""
        A, B = problem.A, problem.B
        left, _ = problem._replace(A=A - B @ B.T, bias=False).equations
        return cls(torch.cholesky_inverse(torch.linalg.cholesky(left)))

    def left_out(self, domain: DomainStatistics, kind: str, own: int, leads: Leads) -> Leads:
        """The leads of a domain's prompts, had each been left out of what W was solved from.

        Without x, which lies d beside its domain's mean, S is smaller by d d^T / (n - 1), and the mean moves by
        -d / (n - 1). With h = d^T (S + lambda I)^-1 d / (n - 1), and u what x adds to the mean lead, the lead over
        another domain is then (Sherman and Morrison 1950)

            mean + (u + u^2 / (2 (n - 1)) - h (n - 1/2) / (n - 1)) / (1 - h).
        """
        n = domain.rows("prompts")
        if n < 2:
            return leads  # nothing would be left of the domain
        mean_row = domain.gram("prompts")[:-1, -1] / n
        covariance = domain.gram("prompts")[:-1, :-1] / n - mean_row.outer(mean_row)
        h = min(float((covariance * self.inverse).sum()) / (n - 1), _MOST_LEVERAGE)
        added = (leads.variance / 2 - h * (n - 0.5)) / (n - 1)
        return Leads(leads.mean + added / (1 - h), leads.variance / (1 - h) ** 2)


class Scorer(NamedTuple):
    """
    What a router scores prompts with.

    Args:
        kind (`str`): of the rows that W is of, `"prompts"` or `"tokens"`.
        domains (`Sequence[str]`): D names.
        W (`torch.Tensor` of shape `(F, D)` or, with a bias, `(F + 1, D)`): of the rows that the router's variant sums.
        solved ([`Solved`] or [`Separated`]): what W was solved with.
        lexicon (`torch.Tensor` of shape `(V, D)`, *optional*): what naive Bayes adds for each token.
    """

    kind: str
    domains: Sequence[str]
    W: torch.Tensor
    solved: Solved | Separated
    lexicon: torch.Tensor | None = None

    @property
    def way(self) -> str:
        """How W was made, as far as estimates differ by it: `"discriminant"`, or the kind of the rows."""
        return "discriminant" if isinstance(self.solved, Separated) else self.kind


class Lost(NamedTuple):
    """
    What a domain loses, as shares of its prompts.

    Args:
        seen (`float`): of the prompts that W was solved from.
        unseen (`float`): of others like them.
        to (`str`): the domain that most of these go to.
    """

    seen: float
    unseen: float
    to: str


@torch.no_grad()
def displaced(statistics: Mapping[str, DomainStatistics], before: Scorer, after: Scorer) -> dict[str, Lost]:
    """By how much more of its prompts each domain loses after than before: 0.1 is ten in a hundred.

    Args:
        statistics (`Mapping[str, DomainStatistics]`): of the domains before, which stand for their honest prompts.
        before, after ([`Scorer`]): without and with what is new.
    """
    more = {}
    for name in before.domains:
        if name in after.domains:
            old, new = _lost(statistics[name], name, before), _lost(statistics[name], name, after)
            more[name] = Lost(new.seen - old.seen, new.unseen - old.unseen, new.to)
    return more


def _lost(domain: DomainStatistics, name: str, scorer: Scorer) -> Lost:
    """What others get of a domain's prompts, each share at most 1."""
    own = list(scorer.domains).index(name)
    leads = _leads(domain, scorer, own)
    left_out = scorer.solved.left_out(domain, scorer.kind, own, leads)
    if scorer.lexicon is not None and domain.documents is not None:
        words = _lexical(domain, scorer.lexicon.double().cpu(), own)
        leads, left_out = _added(leads, words), _added(left_out, words)
    seen, unseen = _negative(leads, own), _negative(left_out, own)
    return Lost(min(float(seen.sum()), 1.0), min(float(unseen.sum()), 1.0), scorer.domains[int(unseen.argmax())])


def _added(leads: Leads, words: Leads) -> Leads:
    return Leads(leads.mean + words.mean, leads.variance + words.variance)


def _leads(domain: DomainStatistics, scorer: Scorer, own: int) -> Leads:
    """A domain's leads over each domain by W."""
    A, W = domain.gram(scorer.kind), scorer.W.double().cpu()
    width = len(W)  # without the column of ones where there is no bias
    leads = W[:, [own]] - W
    mean = A[:width, -1] / A[-1, -1] @ leads
    variance = (A[:width, :width] / A[-1, -1] @ leads * leads).sum(dim=0) - mean.square()
    if scorer.kind == "tokens":  # a prompt's score is taken for a mean over as many as its domain's prompts have
        variance /= _tokens_of_a_prompt(domain)
    return Leads(mean, variance)


def _tokens_of_a_prompt(domain: DomainStatistics) -> float:
    return domain.rows("tokens") / domain.rows("prompts")


def _negative(leads: Leads, own: int) -> torch.Tensor:
    """The shares of normal leads that are below 0, of shape `(D,)`; none over the domain itself."""
    shares = torch.erfc(leads.mean / leads.variance.clamp_min(1e-30).sqrt() / math.sqrt(2)) / 2
    shares[own] = 0
    return shares


def _lexical(domain: DomainStatistics, lexicon: torch.Tensor, own: int) -> Leads:
    """What the lexicon adds to the leads, as if tokens came on their own."""
    assert domain.documents is not None
    ids = domain.documents.nonzero().squeeze(1)
    share = (domain.documents[ids].double() / domain.rows("prompts")).unsqueeze(1)
    leads = lexicon[ids][:, [own]] - lexicon[ids]
    tokens = share.sum()  # distinct ones of a prompt, whose weights are about the root of one over their number
    mean = (share * leads).sum(dim=0) / tokens.sqrt()
    return Leads(mean, (share * (1 - share) * leads.square()).sum(dim=0) / tokens)
