"""Section 3.2: from what each token says to what the prompt says.

Shapes: B prompts, T tokens, K tokens that count, D domains. Padding has mask 0, entropy +inf and no vote.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


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
    weights = counted.double().unsqueeze(2)
    votes = (F.one_hot(token_logits.argmax(dim=2), token_logits.shape[2]) * weights).sum(dim=1)
    total = weights.sum(dim=1)
    p = (token_logits.softmax(dim=2) * weights).sum(dim=1) / total
    return ((votes + p) / (total + 1)).log()


def mean_logits(token_logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean embedding decides: its logits are the mean of its tokens' logits, since the router is linear.

    Args:
        token_logits (`torch.Tensor` of shape `(B, T, D)`): of every token.
        mask (`torch.Tensor` of shape `(B, T)`): true where there is a token.

    Returns:
        `torch.Tensor` of shape `(B, D)`, float64.
    """
    weights = mask.double() / mask.sum(dim=1, keepdim=True)
    return torch.einsum("btd,bt->bd", token_logits.double(), weights)
