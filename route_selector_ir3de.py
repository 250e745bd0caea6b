"""Section 3.2: from what each token says to what the prompt says.

Prompts lie one after another, without padding. Shapes: B prompts, N tokens of all, K of them that vote, D domains.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from .batch_ir3de import Prompts, mean_weights, prompt_weights, prompts_of, weighted_sums
from .specs_ir3de import is_number
from .token_router_ir3de import entropy

_WEIGHTS = {"avg": mean_weights, "prompt": prompt_weights}
MEANS = tuple(_WEIGHTS)  # variants in which a weighted sum of the tokens decides; in the others tokens vote
# What a calibration may hold. Beyond these bounds float64 would make scores infinite, or all the same.
_CALIBRATION = {"temperature": (1e-9, 1e9), "spread": (0, 4)}


class TokenTable(NamedTuple):
    """
    What the router says of every token of the vocabulary: E and W are fixed, so this depends on the token id alone.

    Args:
        rows (`torch.Tensor` of shape `(V, D)`): what a prompt's tokens are summed in; float32. Where a mean decides the
            logits phi(E) W, where tokens vote their softmax.
        votes (`torch.Tensor` of shape `(V,)`): arg max of each token's logits; int32.
        entropies (`torch.Tensor` of shape `(V,)`): Shannon entropy of each token's softmax, in nats; float32.
        constants (`torch.Tensor` of shape `(D,)`, *optional*): what a prompt's sum gains whatever its tokens; float32.
    """

    rows: torch.Tensor
    votes: torch.Tensor
    entropies: torch.Tensor
    constants: torch.Tensor | None = None

    @classmethod
    def of(cls, logits: torch.Tensor, variant: str, constants: torch.Tensor | None = None) -> TokenTable:
        """The table of a variant, from the tokens' logits, of shape `(V, D)`."""
        rows = logits if variant in MEANS else logits.softmax(dim=1)
        return cls(rows, logits.argmax(dim=1).int(), entropy(logits), constants)


def select(table: TokenTable, prompts: Prompts, variant: str, num_votes: int) -> torch.Tensor:
    """Routes prompts by the token table.

    Args:
        table ([`TokenTable`]): of the variant's W.
        prompts ([`Prompts`]): their token ids, which are rows of the table.
        variant (`str`): `"top-k"`, `"all"`, `"avg"` or `"prompt"`.
        num_votes (`int`): k of `"top-k"`.

    Returns:
        `torch.Tensor` of shape `(B, D)`, float64: logits, whose arg max is the route.
    """
    if variant in MEANS:
        sums = weighted_sums(table.rows, prompts, _WEIGHTS[variant](prompts)).double()
        return sums if table.constants is None else sums + table.constants
    if variant == "top-k":
        counted = decisive(table, prompts, variant, num_votes)
        prompts = Prompts(prompts.token_ids[counted], prompts.lengths.clamp_max(num_votes))
    return vote_logits(table, prompts)


def decisive(table: TokenTable, prompts: Prompts, variant: str, num_votes: int) -> torch.Tensor:
    """True for the tokens that `select` counts, of shape `(N,)`: all of them but in `"top-k"`."""
    if variant != "top-k":
        return torch.ones_like(prompts.token_ids, dtype=torch.bool)
    return most_certain(table.entropies[prompts.token_ids], prompts.lengths, num_votes)


def contributions(table: TokenTable, prompts: Prompts, variant: str, counted: torch.Tensor) -> torch.Tensor:
    """What each token adds to each domain.

    Args:
        table, prompts, variant: of `select`.
        counted (`torch.Tensor` of shape `(N,)`): of `decisive`.

    Returns:
        `torch.Tensor` of shape `(N, D)`, float64. The sum over a prompt's tokens is its logits where a weighted sum
        decides, each token with an even share of the constants, and their softmax, the shares of the vote, where tokens
        vote.
    """
    token_ids, lengths = prompts
    rows = table.rows[token_ids].double()
    if variant in MEANS:
        weighted = rows * _WEIGHTS[variant](prompts).unsqueeze(1)
        if table.constants is None:
            return weighted
        return weighted + mean_weights(prompts).unsqueeze(1) * table.constants
    owners = prompts_of(lengths, len(token_ids))
    total = owners[counted].bincount(minlength=len(lengths))[owners].unsqueeze(1)
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


def check_calibration(calibration: object) -> None:
    """Raises ValueError unless these are arguments for `probabilities` with which the order of the logits stays."""
    if not isinstance(calibration, dict) or not calibration.keys() <= _CALIBRATION.keys():
        raise ValueError(f"`calibration` is a mapping with `temperature` and `spread`; got {calibration!r}.")
    for key, value in calibration.items():
        least, most = _CALIBRATION[key]
        if not is_number(value) or not least <= value <= most:
            raise ValueError(
                f"`{key}` of a calibration must be a number from {least:g} to {most:g}, got {value!r}: with another one"
                " scores say nothing, or the reverse. Fit the router again, or take `calibration` out of its config."
            )


def most_certain(entropies: torch.Tensor, lengths: torch.Tensor, num_votes: int) -> torch.Tensor:
    """The k tokens of lowest entropy of each prompt, or all where there are fewer; of equal ones, the earlier.

    Args:
        entropies (`torch.Tensor` of shape `(N,)`): of each token's softmax, float32, at least 0.
        lengths (`torch.Tensor` of shape `(B,)`): tokens of each prompt.
        num_votes (`int`): k.

    Returns:
        `torch.Tensor` of shape `(N,)`: true for those tokens.
    """
    # The bookkeeping of many prompts would take a single one longer than its route (`short_cuts` of
    # scripts/bench/scale.py).
    if lengths.numel() == 1:
        certain = np.zeros(len(entropies), dtype=bool)
        certain[entropies.detach().cpu().numpy().argsort(kind="stable")[:num_votes]] = True
        return torch.from_numpy(certain).to(entropies.device)
    keys = prompts_of(lengths, len(entropies)) << 32 | entropies.view(
        torch.int32
    )  # floats of one sign sort as their bits
    order = keys.argsort(stable=True)  # by prompt, and in it by entropy
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths, output_size=len(order))
    ranks = torch.arange(len(order), device=order.device) - starts
    return torch.empty_like(order, dtype=torch.bool).scatter_(0, order, ranks < num_votes)


def vote_logits(table: TokenTable, prompts: Prompts) -> torch.Tensor:
    """Each token that counts votes for its arg max.

    The share of domain d is (votes_d + p_d) / (votes + 1), p_d the mean softmax of the voters. As every p_d lies
    between 0 and 1, votes decide; equal votes go to the larger summed softmax, then to the smaller index; and the
    shares add up to 1.

    Args:
        table ([`TokenTable`]): of a variant in which tokens vote.
        prompts ([`Prompts`]): of the tokens that vote alone, K of them.

    Returns:
        `torch.Tensor` of shape `(B, D)`, float64: logarithms of the shares.
    """
    token_ids, lengths = prompts
    domains = table.rows.shape[1]
    p = F.embedding_bag(token_ids, table.rows, lengths.cumsum(0) - lengths, mode="mean").double()
    votes = table.votes[token_ids]
    if len(lengths) > 1:
        votes = prompts_of(lengths, len(token_ids)) * domains + votes
    counts = votes.bincount(minlength=p.numel()).view_as(p)
    return ((counts + p) / (lengths + 1).unsqueeze(1)).log()
