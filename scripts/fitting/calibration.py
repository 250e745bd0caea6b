"""From scores to probabilities that hold: one temperature, fitted on held-out prompts."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ir3de.route_selector_ir3de import probabilities

_COARSE = torch.logspace(-3, 3, 31, dtype=torch.float64)
_FINE = torch.logspace(-0.2, 0.2, 21, dtype=torch.float64)  # as factors of the best coarse one
_SPREADS = (0.0, 0.5, 1.0)
_BINS = 15


def fit_calibration(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The temperature, and how far a prompt's own spread of scores enters it, of least negative log-likelihood.

    Args:
        logits (`torch.Tensor` of shape `(N, D)`): of held-out prompts.
        labels (`torch.Tensor` of shape `(N,)`): indices of their domains.

    Returns:
        `dict`: `temperature` and `spread`, see [`~route_selector_ir3de.probabilities`].
    """

    def loss(temperature: float, spread: float) -> float:
        """Mean negative log-likelihood of the labels, in nats."""
        return float(F.nll_loss(probabilities(logits, temperature, spread).clamp_min(1e-12).log(), labels))

    fits = [(temperature, spread) for spread in _SPREADS for temperature in _COARSE.tolist()]
    coarse, spread = min(fits, key=lambda fit: loss(*fit))
    temperature = min((coarse * _FINE).tolist(), key=lambda value: loss(value, spread))
    return {"temperature": temperature, "spread": spread}


def calibration_error(logits: torch.Tensor, labels: torch.Tensor, calibration: dict[str, float]) -> float:
    """Expected calibration error of the highest probability, in 15 bins of equal width (Guo et al. 2017)."""
    return expected_calibration_error(*probabilities(logits, **calibration).max(dim=1), labels)


def expected_calibration_error(confidence: torch.Tensor, chosen: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean gap between confidence and accuracy over bins of confidence, weighted by their size."""
    bins = (confidence * _BINS).long().clamp(max=_BINS - 1)
    gap = confidence - (chosen == labels).double()
    sums = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, bins, gap.double())
    return float(sums.abs().sum() / len(labels))
