"""Differentially private statistics: what one prompt adds is bounded, and Gaussian noise hides whether it was there.

Two data sets are neighbours if one has a prompt more. A prompt adds x x^T of a row of length at most sqrt(2) (the
column of ones included) to the prompt rows' A, and the mean of its tokens' x x^T, which are as long, to the token rows'
A: so it moves each by at most 2 in the Frobenius norm, and both together by 2 sqrt(2). The noise for that is calibrated
with the analytic Gaussian mechanism (Balle and Wang 2018, theorem 8 and algorithm 1).

The theorem is of real numbers. So the sums are first rounded to a grid, and the noise is rounded to the same grid: for
whole numbers Q, Q + round(y) = round(Q + y), which is what the theorem protects, rounded afterwards. In floating point
that sum is exact, and no last bits are left to tell noise from sums.
"""

from __future__ import annotations

import math
import secrets
import warnings

import numpy as np
import torch

from ir3de.batch_ir3de import Prompts
from ir3de.statistics_ir3de import DomainStatistics, StatisticsCollector, check_token_ids

SHARE = 1 << 20  # a prompt's counts sum to this, in whole numbers so that they add exactly
SENSITIVITY = 2 * math.sqrt(2)
GRID = 2.0**-16  # to which sums and noise are rounded


def check_privacy(epsilon: float, delta: float, feature_map: str) -> None:
    """Raises ValueError where the private mode cannot keep its promise, and warns where that promises little."""
    if not (0 < epsilon < math.inf and 0 < delta < 1):
        raise ValueError(
            f"The private mode needs epsilon above 0 and delta between 0 and 1; got {epsilon} and {delta}."
        )
    if epsilon > 10:
        warnings.warn(
            f"Epsilon {epsilon:g} promises next to nothing: who sees the statistics may become e^{epsilon:g} times as"
            " sure that a prompt was in the data. Values up to 1 promise much, values up to 10 something.",
            stacklevel=2,
        )
    if feature_map == "identity":
        raise ValueError(
            "The private mode needs tokens of bounded length, and this router's feature map is 'identity'. Fit it with"
            " --feature-map unit or rff."
        )


class PrivateCollector(StatisticsCollector):
    """
    Collects sums to which each prompt adds a bounded amount; without noise they are not private yet.

    Args:
        features (`torch.Tensor` of shape `(V, F)`): of each token, no longer than 1.
        fingerprint (`str`): of the feature space.
        device (`str` or `torch.device`): where prompts' rows are summed.
    """

    def _count(self, prompts: Prompts) -> None:
        """A prompt's tokens share one token's weight, and in which prompts tokens occur is not counted at all."""
        token_ids, lengths = prompts
        check_token_ids(token_ids, len(self.features))
        self.counts.index_add_(0, token_ids, (SHARE // lengths).repeat_interleave(lengths))

    def _rows(self, prompts: Prompts) -> torch.Tensor:
        rows = super()._rows(prompts).double()
        lengths: torch.Tensor = rows.norm(dim=1, keepdim=True)
        return rows / lengths.clamp_min(1)


def release(
    tokens: torch.Tensor, prompts: torch.Tensor, fingerprint: str, epsilon: float, delta: float
) -> DomainStatistics:
    """Noisy statistics that may be published. What follows the noise does not look at the data again.

    Args:
        tokens (`torch.Tensor` of shape `(F + 1, F + 1)`): A over the token rows of a `PrivateCollector`, over `SHARE`.
        prompts (`torch.Tensor` of shape `(F + 1, F + 1)`): A over its prompt rows.
        fingerprint (`str`): of the feature space.
        epsilon (`float`): of (epsilon, delta)-differential privacy for one prompt.
        delta (`float`): its delta.
    """
    size = len(tokens)
    # Rounding moves each entry of the two upper triangles by a step of the grid at most.
    sigma = noise_scale(epsilon, delta, SENSITIVITY + GRID * math.sqrt(size * (size + 1)))
    _warn_of_little(int(prompts[-1, -1]), size, sigma, delta)
    grams = {}
    for kind, A in (("tokens", tokens), ("prompts", prompts)):
        noise = (normal(A.shape) * (sigma / GRID)).round_().triu_()
        grams[kind] = _nearest(((A / GRID).round_() + noise + noise.triu(1).T) * GRID)
    return DomainStatistics.from_grams(grams, fingerprint)


def normal(shape: torch.Size) -> torch.Tensor:
    """Standard normal numbers of the operating system's generator, which no search over seeds finds.

    By Box and Muller, with 64 bits for each radius and each angle.
    """
    pairs = math.ceil(shape.numel() / 2)
    bits = np.frombuffer(secrets.token_bytes(16 * pairs), dtype=np.uint64).reshape(2, pairs)
    uniform = (bits.astype(np.float64) + 1) / 2.0**64  # above 0, at most 1
    radius, angle = np.sqrt(-2 * np.log(uniform[0])), 2 * np.pi * uniform[1]
    numbers = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return torch.from_numpy(numbers[: shape.numel()]).reshape(shape)


def _warn_of_little(prompts: int, size: int, sigma: float, delta: float) -> None:
    """Warns where delta permits what the mode is to prevent, and where the noise drowns the sums."""
    if delta * prompts >= 1:
        warnings.warn(
            f"Delta {delta:g} is not below 1 / {prompts:,}, the number of prompts: such a promise is kept by publishing"
            f" one of them as it is. Choose --delta below {0.1 / prompts:.1g}.",
            stacklevel=3,
        )
    enough = math.ceil(2 * sigma * math.sqrt(size))  # the largest eigenvalue of the noise is about that
    if prompts < enough:
        warnings.warn(
            f"{prompts:,} prompts are too few for this epsilon: noise of {size:,} columns is stronger than the sums of"
            f" fewer than {enough:,}. The domain will hardly be recognised: collect more, or choose a larger epsilon.",
            stacklevel=3,
        )


def noise_scale(epsilon: float, delta: float, sensitivity: float) -> float:
    """The smallest standard deviation of Gaussian noise that gives (epsilon, delta)-differential privacy.

    Args:
        epsilon (`float`): above 0.
        delta (`float`): between 0 and 1.
        sensitivity (`float`): how far neighbours can be apart in the Euclidean norm.
    """
    low, high = 0.0, sensitivity
    while gaussian_delta(high, epsilon, sensitivity) > delta:
        high *= 2
    for _ in range(200):  # delta falls as the noise grows
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, epsilon, sensitivity) > delta else (low, middle)
    return high


def gaussian_delta(sigma: float, epsilon: float, sensitivity: float) -> float:
    """delta of Gaussian noise: Phi(D/2s - es/D) - exp(e) Phi(-D/2s - es/D) (Balle and Wang 2018, theorem 8)."""
    if sigma == 0:
        return 1.0
    a, b = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    second = _log_normal_cdf(-a - b)
    return math.exp(_log_normal_cdf(a - b)) - math.exp(epsilon + second)


def _log_normal_cdf(x: float) -> float:
    return float(torch.special.log_ndtr(torch.tensor(x, dtype=torch.float64)))


def _nearest(A: torch.Tensor) -> torch.Tensor:
    """Noisy sums made sums of x x^T again: no negative eigenvalue, a whole number of rows, rows no longer than 1."""
    values, vectors = torch.linalg.eigh(A)
    A = (vectors * values.clamp_min(0)) @ vectors.T
    A = (A + A.T) / 2
    n = max(1, math.ceil(float(A[-1, -1])))
    trace = float(A.diagonal()[:-1].sum())
    scale = torch.full((len(A),), min(1.0, math.sqrt(n / trace)) if trace else 1.0, dtype=torch.float64)
    scale[-1] = 1
    A = A * scale * scale.unsqueeze(1)
    A[-1, -1] = n
    return A
