"""Section 3.2: from what each token says to what the prompt says.

Shapes: B prompts, T tokens, K tokens that may vote, D domains. Padding has mask 0, entropy +inf, and never counts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .statistics_ir3de import mean_weights, prompt_weights, weighted_sums

MEANS = ("avg", "prompt")  # variants in which a weighted sum of the tokens decides; in the others tokens vote


class TokenTable(NamedTuple):
    """
    What the router says of every token of the vocabulary: E and W are fixed, so this depends on the token id alone.

    Args:
        logits (`torch.Tensor` of shape `(V, D)`): rows of phi(E) W, before the softmax; float32.
        entropies (`torch.Tensor` of shape `(V,)`): Shannon entropy of the softmax of each row, in nats; float32.
    """

    logits: torch.Tensor
    entropies: torch.Tensor


class Selection(NamedTuple):
    """
    What the selector made of a batch.

    Args:
        logits (`torch.Tensor` of shape `(B, D)`): float64; the arg max is the route.
        counted (`torch.Tensor` of shape `(B, T)`): true for the tokens that decided.
    """

    logits: torch.Tensor
    counted: torch.Tensor


def select(table: TokenTable, input_ids: torch.Tensor, mask: torch.Tensor, variant: str, num_votes: int) -> Selection:
    """Routes prompts by the token table.

    Args:
        table ([`TokenTable`]): of the variant's W.
        input_ids (`torch.Tensor` of shape `(B, T)`): rows of the table.
        mask (`torch.Tensor` of shape `(B, T)`): true where there is a token; at least one a prompt.
        variant (`str`): `"top-k"`, `"all"`, `"avg"` or `"prompt"`.
        num_votes (`int`): k of `"top-k"`.
    """
    if variant in MEANS:
        return Selection(weighted_sums(table.logits, input_ids, _weights(input_ids, mask, variant)).double(), mask)
    voters, counts = most_certain(table.entropies[input_ids], mask, num_votes if variant == "top-k" else mask.shape[1])
    logits = vote_logits(table.logits[input_ids.gather(1, voters)], counts)
    return Selection(logits, torch.zeros_like(mask).scatter(1, voters, counts))


def contributions(
    table: TokenTable, input_ids: torch.Tensor, mask: torch.Tensor, variant: str, selection: Selection
) -> torch.Tensor:
    """What each token adds to each domain.

    Returns:
        `torch.Tensor` of shape `(B, T, D)`, float64. The sum over the tokens is `selection.logits` where a weighted sum
        decides, and their softmax, the shares of the vote, where tokens vote.
    """
    token_logits = table.logits[input_ids].double()
    if variant in MEANS:
        return token_logits * _weights(input_ids, mask, variant).unsqueeze(2)
    voters = selection.counted.double().unsqueeze(2)
    total = voters.sum(dim=1, keepdim=True)
    votes = F.one_hot(token_logits.argmax(dim=2), token_logits.shape[2])
    return voters * (votes + token_logits.softmax(dim=2) / total) / (total + 1)


def probabilities(logits: torch.Tensor, temperature: float = 1.0, spread: float = 0.0) -> torch.Tensor:
    """Calibrated probabilities of the experts; the order of the logits stays.

    Args:
        logits (`torch.Tensor` of shape `(B, D)`): of `select`.
        temperature (`float`): the logits are divided by it.
        spread (`float`): and by this power of their standard deviation over the experts.
    """
    logits = logits.double()
    scale = temperature * logits.std(dim=1, keepdim=True, correction=0).clamp_min(1e-12) ** spread
    return (logits / scale).softmax(dim=1)


def _weights(input_ids: torch.Tensor, mask: torch.Tensor, variant: str) -> torch.Tensor:
    return prompt_weights(input_ids, mask) if variant == "prompt" else mean_weights(mask)


def most_certain(entropies: torch.Tensor, mask: torch.Tensor, num_votes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The min(k, T) tokens of lowest entropy; of equal ones, the earlier.

    Args:
        entropies (`torch.Tensor` of shape `(B, T)`): of each token's softmax.
        mask (`torch.Tensor` of shape `(B, T)`): true where there is a token.
        num_votes (`int`): k.

    Returns:
        positions (`torch.Tensor` of shape `(B, K)`), and a mask of the same shape, false where a prompt has fewer
        than K tokens.
    """
    values, positions = entropies.masked_fill(~mask, torch.inf).sort(dim=1, stable=True)
    return positions[:, :num_votes], values[:, :num_votes].isfinite()


def vote_logits(token_logits: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Each token that counts votes for its arg max.

    The share of domain d is (votes_d + p_d) / (votes + 1), p_d the mean softmax of the voters. As every p_d lies
    between 0 and 1, votes decide; equal votes go to the larger summed softmax, then to the smaller index; and the
    shares add up to 1.

    Args:
        token_logits (`torch.Tensor` of shape `(B, K, D)`): of the tokens that may vote.
        counted (`torch.Tensor` of shape `(B, K)`): which of them do; at least one a prompt.

    Returns:
        `torch.Tensor` of shape `(B, D)`, float64: logarithms of the shares.
    """
    total = counted.sum(dim=1, keepdim=True)
    votes = counted.new_zeros(len(counted), token_logits.shape[2], dtype=torch.float64)
    votes.scatter_add_(1, token_logits.argmax(dim=2), counted.double())
    p = (token_logits.softmax(dim=2) * counted.unsqueeze(2)).sum(dim=1, dtype=torch.float64) / total
    return ((votes + p) / (total + 1)).log()
