"""Section 3.1, second half: features of tokens, and W from the sums by ridge regression."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

_CHUNK = 8192  # rows of the vocabulary that are mapped at a time
SMOOTHING = 0.3  # prompts of each domain, added to those that a token occurs in


class FeatureMap(NamedTuple):
    """
    What a token's features phi are made of.

    Args:
        name (`str`): `"identity"`, the embedding (the paper); `"unit"`, the embedding less the vocabulary's mean,
            scaled to length one; `"rff"`, random Fourier features of the latter, whose inner products approximate the
            Gaussian kernel exp(-|x - y|^2 / (2 l^2)) (Rahimi and Recht 2007; the paper's first future-work item).
        size (`int`): F, the number of random features, even.
        length_scale (`float`): l.
        seed (`int`): of the random frequencies, which are rebuilt and never stored.
    """

    name: str = "identity"
    size: int = 4096
    length_scale: float = math.sqrt(2)  # the typical distance of two unit vectors
    seed: int = 0

    def width(self, hidden_size: int) -> int:
        """F, the number of features of a token whose embedding has `hidden_size` entries."""
        return self.size if self.name == "rff" else hidden_size

    @property
    def description(self) -> str:
        """What sets this map apart from others; part of the fingerprint of a feature space."""
        if self.name != "rff":
            return self.name
        drawn = torch.randn(4, generator=torch.Generator().manual_seed(self.seed)).tolist()
        return f"rff {self.size} {self.length_scale:.9g} {self.seed} {drawn}"

    def prepare(self, embeddings: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """The map from embeddings to features of this vocabulary, for use on one part of it after another."""
        if self.name == "identity":
            return torch.Tensor.float
        mean = embeddings.double().mean(dim=0).float()

        def unit(rows: torch.Tensor) -> torch.Tensor:
            """Rows less the vocabulary's mean, of length one."""
            return F.normalize(rows.float() - mean, dim=1)

        if self.name == "unit":
            return unit
        frequencies = self._frequencies(embeddings.shape[1]).to(embeddings.device)

        return lambda rows: fourier(unit(rows), frequencies)

    def table(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Features of the whole vocabulary: `(V, h)` to `(V, F)`, float32, on the CPU."""
        features = self.prepare(embeddings)
        return torch.cat([features(rows).cpu() for rows in embeddings.split(_CHUNK)])

    def _frequencies(self, hidden_size: int) -> torch.Tensor:
        """Omega of shape `(h, F / 2)`, drawn on the CPU so that every device has the same."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(hidden_size, self.size // 2, generator=generator) / self.length_scale


def fourier(rows: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Random Fourier features of length one: rows `(N, h)` and Omega `(h, F / 2)` to `(N, F)`."""
    angles = rows @ frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1) * math.sqrt(1 / frequencies.shape[1])


def orthogonal_frequencies(width: int, number: int, length_scale: float, seed: int = 0) -> torch.Tensor:
    """Omega of shape `(width, number)`, float64: each frequency as if drawn on its own, but `width` of them at a time
    at right angles, so that fewer features come as close to the kernel (Yu et al. 2016).
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(0, number, width):
        Q, R = torch.linalg.qr(torch.randn(width, width, generator=generator).double())
        Q = Q * R.diagonal().sign()  # of the Qs that there are, the one that all libraries agree on
        blocks.append(Q * torch.randn(width, width, generator=generator).double().norm(dim=0))
    return torch.cat(blocks, dim=1)[:, :number] / length_scale


def sums(grams: Iterable[torch.Tensor], balance: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B over all domains.

    Args:
        grams (`Iterable[torch.Tensor]` of shape `(F + 1, F + 1)`): A_d of each of the D domains, the column of ones
            last; float64.
        balance (`bool`): A = sum_d A_d / n_d and column d of B is b_d / n_d; else the plain sums.

    Returns:
        A, `torch.Tensor` of shape `(F + 1, F + 1)`, and B, of shape `(F + 1, D)`; float64.
    """
    A, columns = torch.zeros(()), []
    for A_d in grams:  # one at a time: there may be many
        weighted = A_d / A_d[-1, -1] if balance else A_d
        columns.append(weighted[:, -1].clone())  # one-hot labels: b_d = X_d^T 1
        A = A + weighted
    return A, torch.stack(columns, dim=1)


class Problem(NamedTuple):
    """
    Ridge regression of one-hot domain labels on rows: min_W ||X W - Y||^2 + lambda ||W||^2.

    Args:
        A (`torch.Tensor` of shape `(F + 1, F + 1)`): X^T X over all domains, the column of ones last; float64.
        B (`torch.Tensor` of shape `(F + 1, D)`): X^T Y.
        regularization (`float`): lambda, above 0.
        bias (`bool`): keep the column of ones.
        normalize_columns (`bool`): divide each column of W by its Euclidean norm, as the authors' code does.
    """

    A: torch.Tensor
    B: torch.Tensor
    regularization: float
    bias: bool = True
    normalize_columns: bool = False

    @property
    def equations(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both sides of (A + lambda I) W = B, without the column of ones where there is no bias."""
        A, B = (self.A, self.B) if self.bias else (self.A[:-1, :-1], self.B[:-1])
        regularized = A.clone()
        regularized.diagonal().add_(self.regularization)
        return regularized, B


def ridge(
    A: torch.Tensor, B: torch.Tensor, regularization: float, bias: bool = True, normalize_columns: bool = False
) -> torch.Tensor:
    """Solves a [`Problem`], of which these are the fields.

    Returns:
        `torch.Tensor` of shape `(F + 1, D)`, or `(F, D)` without `bias`; float64. With the bias its row is the last.

    Raises:
        ValueError: A + lambda I is not positive definite in float64.
    """
    # section 3.1: W* = (A + lambda I)^-1 B
    left, right = Problem(A, B, regularization, bias).equations
    L, failed = torch.linalg.cholesky_ex(left)
    if int(failed):
        raise ValueError(
            f"A + lambda I is not positive definite at lambda {regularization}: the mean of its diagonal is"
            f" {float(left.diagonal().mean()):.3g}. Raise `regularization`."
        )
    W = torch.cholesky_solve(right, L)
    return W / W.norm(dim=0) if normalize_columns else W


def discriminant(A: torch.Tensor, B: torch.Tensor, regularization: float) -> torch.Tensor:
    """Linear discriminant analysis (Fisher 1936), with the covariance that all domains share: the log odds of domains
    whose rows are normal. With many domains it tells close ones apart better than ridge regression does.

    Args:
        A (`torch.Tensor` of shape `(F + 1, F + 1)`): X^T X, balanced, the column of ones last; float64.
        B (`torch.Tensor` of shape `(F + 1, D)`): X^T Y, balanced, so that column d is mu_d, the mean row of a domain.
        regularization (`float`): lambda, above 0.

    Returns:
        `torch.Tensor` of shape `(F + 1, D)`, float64: (S + lambda I)^-1 mu_d, where S = A - sum_d mu_d mu_d^T sums the
        domains' own covariances; and in the last row each domain's constant, minus half of mu_d^T times that.

    Raises:
        ValueError: S + lambda I is not positive definite in float64.
    """
    W = ridge(A - B @ B.T, B, regularization, bias=False)
    constants = (W * B[:-1]).sum(dim=0) / -2
    return torch.cat([W, constants.unsqueeze(0)])


def log_odds(documents: Sequence[torch.Tensor], smoothing: float = SMOOTHING) -> torch.Tensor:
    """What single tokens tell of the domain, as in naive Bayes: ln P(v | d) less its mean over the domains.

    Args:
        documents (`Sequence[torch.Tensor]` of shape `(V,)`): for each of the D domains, in how many of its prompts each
            token occurs.
        smoothing (`float`): prompts of each domain that are added to those, above 0.

    Returns:
        `torch.Tensor` of shape `(V, D)`, float64. P is smoothed, so that no token excludes a domain.
    """
    smooth = torch.stack([counts.double() + smoothing for counts in documents], dim=1)
    logs = (smooth / smooth.sum(dim=0)).log()
    return logs - logs.mean(dim=1, keepdim=True)


def mean_diagonal(A: torch.Tensor) -> float:
    """Mean of the diagonal of A of shape `(F + 1, F + 1)`, the column of ones left out: the scale lambda lives on."""
    return float(A.diagonal()[:-1].mean())


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Shannon entropy of softmax(logits) over the last dimension, in nats (section 3.2), never below 0 by rounding."""
    log_s = logits.log_softmax(dim=-1)
    return (log_s.exp() * log_s).sum(dim=-1).abs()
