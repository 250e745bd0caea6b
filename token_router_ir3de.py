"""Section 3.1, second half: W from the sums by ridge regression, and the token table that W makes of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F

_CHUNK = 8192  # rows of the vocabulary that are scored at a time


def solve(
    grams: Iterable[torch.Tensor],
    regularization: float,
    balance: bool = True,
    bias: bool = True,
    normalize_columns: bool = False,
) -> torch.Tensor:
    """Ridge regression of one-hot domain labels on rows: min_W ||X W - Y||^2 + lambda ||W||^2.

    Args:
        grams (`Iterable[torch.Tensor]` of shape `(h + 1, h + 1)`): A_d of each of the D domains, the column of ones
            last; float64.
        regularization (`float`): lambda, above 0.
        balance (`bool`): A = sum_d A_d / n_d and column d of B is b_d / n_d; else the plain sums.
        bias (`bool`): keep the column of ones.
        normalize_columns (`bool`): divide each column of W by its Euclidean norm, as the authors' code does.

    Returns:
        `torch.Tensor` of shape `(h + 1, D)`, or `(h, D)` without `bias`; float64. With the bias its row is the last.

    Raises:
        ValueError: A + lambda I is not positive definite in float64.
    """
    weighted = [_weigh(A_d, balance) for A_d in grams]
    A = sum(weighted[1:], weighted[0])
    B = torch.stack([A_d[:, -1] for A_d in weighted], dim=1)  # one-hot labels: b_d = X_d^T 1
    if not bias:
        A, B = A[:-1, :-1], B[:-1]
    # section 3.1: W* = (A + lambda I)^-1 B
    L, failed = torch.linalg.cholesky_ex(A + regularization * torch.eye(len(A), dtype=torch.float64))
    if int(failed):
        raise ValueError(
            f"A + lambda I is not positive definite at lambda {regularization}: the mean of A's diagonal is"
            f" {float(A.diagonal().mean()):.3g}. Raise `regularization`."
        )
    W = torch.cholesky_solve(B, L)
    return W / W.norm(dim=0) if normalize_columns else W


def mean_diagonal(grams: Iterable[torch.Tensor], balance: bool = True) -> float:
    """Mean of the diagonal of A as `solve` sums it, the column of ones left out: the scale that lambda lives on."""
    return float(sum(_weigh(A_d, balance).diagonal()[:-1].mean() for A_d in grams))


def _weigh(A_d: torch.Tensor, balance: bool) -> torch.Tensor:
    """A_d / n_d, so that every domain weighs the same, or A_d as it is."""
    return A_d / A_d[-1, -1] if balance else A_d


class TokenTable(NamedTuple):
    """
    What the router says of every token of the vocabulary: E and W are fixed, so this depends on the token id alone.

    Args:
        logits (`torch.Tensor` of shape `(V, D)`): rows of E W, before the softmax; float32.
        entropies (`torch.Tensor` of shape `(V,)`): Shannon entropy of the softmax of each row, in nats; float32.
    """

    logits: torch.Tensor
    entropies: torch.Tensor


def token_table(embeddings: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> TokenTable:
    """Scores the whole vocabulary once.

    Args:
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
        weight (`torch.Tensor` of shape `(D, h)`): W transposed.
        bias (`torch.Tensor` of shape `(D,)`, *optional*): the last row of W.
    """
    bias = None if bias is None else bias.float()
    logits = torch.cat([F.linear(rows.float(), weight.float(), bias) for rows in embeddings.split(_CHUNK)])
    return TokenTable(logits, entropy(logits))


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Shannon entropy of softmax(logits) over the last dimension, in nats (section 3.2)."""
    log_s = logits.log_softmax(dim=-1)
    return -(log_s.exp() * log_s).sum(dim=-1)
