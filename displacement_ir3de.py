"""How many of its domains' prompts a router loses when its W changes, from their sums alone: no prompt is needed.

A domain's sums give the mean m and the second moment C of its rows x. Its prompts' lead over another domain's column,
(w_own - w_other)^T x, has therefore the mean (w_own - w_other)^T m and a variance from C; as a sum over tokens it is
close to normal, so that Phi(-mean / deviation) of the prompts go to the other. Over all other domains this adds up to
at least what is lost (Boole's inequality), as far as leads are normal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from .statistics_ir3de import DomainStatistics


class Scorer(NamedTuple):
    """
    What a router scores prompts with.

    Args:
        kind (`str`): of the rows that W is of, `"prompts"` or `"tokens"`.
        domains (`Sequence[str]`): D names.
        W (`torch.Tensor` of shape `(F, D)` or, with a bias, `(F + 1, D)`): of the rows that the router's variant sums.
        lexicon (`torch.Tensor` of shape `(V, D)`, *optional*): what naive Bayes adds for each token.
    """

    kind: str
    domains: Sequence[str]
    W: torch.Tensor
    lexicon: torch.Tensor | None = None


@torch.no_grad()
def displaced(statistics: Mapping[str, DomainStatistics], before: Scorer, after: Scorer) -> dict[str, float]:
    """By how much more of its prompts each domain loses after than before: 0.1 is ten in a hundred.

    Args:
        statistics (`Mapping[str, DomainStatistics]`): of the domains before, which stand for their honest prompts.
        before, after ([`Scorer`]): without and with what is new.
    """
    more = {}
    for name in before.domains:
        if name in after.domains:
            domain = statistics[name]
            A = domain.gram(before.kind)
            more[name] = _lost(domain, A, name, after) - _lost(domain, A, name, before)
    return more


def _lost(domain: DomainStatistics, A: torch.Tensor, name: str, scorer: Scorer) -> float:
    """The share of a domain's prompts that others get, at most 1."""
    W, own = scorer.W.double().cpu(), list(scorer.domains).index(name)
    width = len(W)  # without the column of ones where there is no bias
    leads = W[:, [own]] - W
    mean = A[:width, -1] / A[-1, -1] @ leads
    variance = (A[:width, :width] / A[-1, -1] @ leads * leads).sum(dim=0) - mean.square()
    if scorer.kind == "tokens":  # a prompt's score is taken for a mean over as many as its domain's prompts have
        variance /= domain.rows("tokens") / domain.rows("prompts")
    if scorer.lexicon is not None and domain.documents is not None:
        more = _lexical(domain, scorer.lexicon.double().cpu(), own)
        mean, variance = mean + more[0], variance + more[1]
    shares = torch.erfc(mean / variance.clamp_min(1e-30).sqrt() / math.sqrt(2)) / 2
    shares[own] = 0
    return min(float(shares.sum()), 1.0)


def _lexical(domain: DomainStatistics, lexicon: torch.Tensor, own: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of what the lexicon adds to the leads, each of shape `(D,)`, as if tokens came on their own."""
    assert domain.documents is not None
    ids = domain.documents.nonzero().squeeze(1)
    share = (domain.documents[ids].double() / domain.rows("prompts")).unsqueeze(1)
    leads = lexicon[ids][:, [own]] - lexicon[ids]
    tokens = share.sum()  # distinct ones of a prompt, whose weights are about the root of one over their number
    mean = (share * leads).sum(dim=0) / tokens.sqrt()
    return mean, (share * (1 - share) * leads.square()).sum(dim=0) / tokens
