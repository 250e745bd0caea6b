"""Section 3.2: from what each token says to what the prompt says.

Prompts lie one after another, without padding. Shapes: B prompts, N tokens of all, K of them that vote, D domains.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .statistics_ir3de import mean_weights, prompt_weights, prompts_of, weighted_sums
from .token_router_ir3de import entropy

_WEIGHTS = {"avg": mean_weights, "prompt": prompt_weights}
MEANS = tuple(_WEIGHTS)  # variants in which a weighted sum of the tokens decides; in the others tokens vote


class TokenTable(NamedTuple):
    """
    What the router says of every token of the vocabulary: E and W are fixed, so this depends on the token id alone.

    Args:
        rows (`torch.Tensor` of shape `(V, D)`): what a prompt's tokens are summed in; float32. Where a mean decides the
            logits phi(E) W, where tokens vote their softmax.
        votes (`torch.Tensor` of shape `(V,)`): arg max of each token's logits; int32.
        entropies (`torch.Tensor` of shape `(V,)`): Shannon entropy of each token's softmax, in nats; float32.
    """

    rows: torch.Tensor
    votes: torch.Tensor
    entropies: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, variant: str) -> TokenTable:
        """The table of a variant, from the tokens' logits, of shape `(V, D)`."""
        rows = logits if variant in MEANS else logits.softmax(dim=1)
        return cls(rows, logits.argmax(dim=1).int(), entropy(logits))


def select(
    table: TokenTable, token_ids: torch.Tensor, lengths: torch.Tensor, variant: str, num_votes: int
) -> torch.Tensor:
    """Routes prompts by the token table.

    Args:
        table ([`TokenTable`]): of the variant's W.
        token_ids (`torch.Tensor` of shape `(N,)`): rows of the table, of one prompt after another.
        lengths (`torch.Tensor` of shape `(B,)`): tokens of each prompt, at least 1.
        variant (`str`): `"top-k"`, `"all"`, `"avg"` or `"prompt"`.
        num_votes (`int`): k of `"top-k"`.

    Returns:
        `torch.Tensor` of shape `(B, D)`, float64: logits, whose arg max is the route.
    """
    if variant in MEANS:
        weights = _WEIGHTS[variant](token_ids, lengths)
        return weighted_sums(table.rows, token_ids, lengths, weights).double()
    counted = decisive(table, token_ids, lengths, variant, num_votes)
    prompts = prompts_of(token_ids, lengths)[counted]
    return vote_logits(table, token_ids[counted], prompts, len(lengths))


def decisive(
    table: TokenTable, token_ids: torch.Tensor, lengths: torch.Tensor, variant: str, num_votes: int
) -> torch.Tensor:
    """True for the tokens that `select` counts, of shape `(N,)`: all of them but in `"top-k"`."""
    if variant != "top-k":
        return torch.ones_like(token_ids, dtype=torch.bool)
    return most_certain(table.entropies[token_ids], lengths, num_votes)


def contributions(
    table: TokenTable, token_ids: torch.Tensor, lengths: torch.Tensor, variant: str, counted: torch.Tensor
) -> torch.Tensor:
    """What each token adds to each domain.

    Args:
        table, token_ids, lengths, variant: of `select`.
        counted (`torch.Tensor` of shape `(N,)`): of `decisive`.

    Returns:
        `torch.Tensor` of shape `(N, D)`, float64. The sum over a prompt's tokens is its logits where a weighted sum
        decides, and their softmax, the shares of the vote, where tokens vote.
    """
    rows = table.rows[token_ids].double()
    if variant in MEANS:
        return rows * _WEIGHTS[variant](token_ids, lengths).unsqueeze(1)
    prompts = prompts_of(token_ids, lengths)
    total = prompts[counted].bincount(minlength=len(lengths))[prompts].unsqueeze(1)
    votes = F.one_hot(table.votes[token_ids].long(), rows.shape[1])
    return counted.unsqueeze(1) * (votes + rows / total) / (total + 1)


def probabilities(logits: torch.Tensor, temperature: float = 1.0, spread: float = 0.0) -> torch.Tensor:
    """Calibrated probabilities of the experts; the order of the logits stays.

    Args:
        logits (`torch.Tensor` of shape `(B, D)`): of `select`.
        temperature (`float`): the logits are divided by it.
        spread (`float`): and by this power of their standard deviation over the experts.
    """
    logits = logits.double()
    scale: float | torch.Tensor = temperature
    if spread:
        scale = temperature * logits.std(dim=1, keepdim=True, correction=0).clamp_min(1e-12) ** spread
    return (logits / scale).softmax(dim=1)


def most_certain(entropies: torch.Tensor, lengths: torch.Tensor, num_votes: int) -> torch.Tensor:
    """The k tokens of lowest entropy of each prompt, or all where there are fewer; of equal ones, the earlier.

    Args:
        entropies (`torch.Tensor` of shape `(N,)`): of each token's softmax, float32, at least 0.
        lengths (`torch.Tensor` of shape `(B,)`): tokens of each prompt.
        num_votes (`int`): k.

    Returns:
        `torch.Tensor` of shape `(N,)`: true for those tokens.
    """
    keys = prompts_of(entropies, lengths) << 32 | entropies.view(torch.int32)  # floats of one sign sort as their bits
    order = keys.argsort(stable=True)  # by prompt, and in it by entropy
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths, output_size=len(order))
    ranks = torch.arange(len(order), device=order.device) - starts
    return torch.empty_like(order, dtype=torch.bool).scatter_(0, order, ranks < num_votes)


def vote_logits(table: TokenTable, voters: torch.Tensor, prompts: torch.Tensor, number: int) -> torch.Tensor:
    """Each token that counts votes for its arg max.

    The share of domain d is (votes_d + p_d) / (votes + 1), p_d the mean softmax of the voters. As every p_d lies
    between 0 and 1, votes decide; equal votes go to the larger summed softmax, then to the smaller index; and the
    shares add up to 1.

    Args:
        table ([`TokenTable`]): of a variant in which tokens vote.
        voters (`torch.Tensor` of shape `(K,)`): ids of the tokens that vote.
        prompts (`torch.Tensor` of shape `(K,)`): index of each one's prompt, ascending.
        number (`int`): B, of prompts; each has at least one token that votes.

    Returns:
        `torch.Tensor` of shape `(B, D)`, float64: logarithms of the shares.
    """
    total = prompts.bincount(minlength=number)
    p = F.embedding_bag(voters, table.rows, total.cumsum(0) - total, mode="mean").double()
    votes = torch.zeros_like(p)
    votes.index_put_((prompts, table.votes[voters].long()), votes.new_ones(()), accumulate=True)
    return ((votes + p) / (total + 1).unsqueeze(1)).log()
