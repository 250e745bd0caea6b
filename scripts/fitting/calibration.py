"""From scores to probabilities that hold: one temperature, fitted on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ir3de.route_selector_ir3de import probabilities
from ir3de.scripts.metrics import measures

_COARSE = torch.logspace(-3, 3, 31, dtype=torch.float64)
_FINE = torch.logspace(-0.2, 0.2, 21, dtype=torch.float64)  # as factors of the best coarse one
_SPREADS = (0.0, 0.5, 1.0)


def fit_calibration(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The temperature, and how far a prompt's own spread of scores enters it, of least negative log-likelihood.

    Args:
        logits (`torch.Tensor` of shape `(N, D)`): of held-out prompts.
        labels (`torch.Tensor` of shape `(N,)`): indices of their domains.

    Returns:
        `dict`: `temperature` and `spread`, see [`~route_selector_ir3de.probabilities`].
    """
    coarse = best_calibration(logits, labels, _COARSE.tolist(), _SPREADS)
    finer = (coarse["temperature"] * _FINE).tolist()
    return best_calibration(logits, labels, finer, [coarse["spread"]])


def best_calibration(
    logits: torch.Tensor, labels: torch.Tensor, temperatures: Sequence[float], spreads: Sequence[float] = (0.0,)
) -> dict[str, float]:
    """Of some temperatures and spreads, the first pair of least negative log-likelihood.

    A label counts for (N + 1) / (N + 2), and the other domains share the rest, as if of two prompts more one had been
    right and one wrong (Platt 1999). Where every held-out prompt is right, no temperature would otherwise be too low.

    Args:
        logits (`torch.Tensor` of shape `(N, D)`): of held-out prompts.
        labels (`torch.Tensor` of shape `(N,)`): indices of their domains.
        temperatures (`Sequence[float]`): to try.
        spreads (`Sequence[float]`): to try with each of them.

    Returns:
        `dict`: `temperature` and `spread`.
    """
    losses = {}
    wrong = 1 / (len(labels) + 2)
    for spread in spreads:
        for temperature in temperatures:
            log_p = probabilities(logits, temperature, spread).clamp_min(1e-12).log()
            label = log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
            others = (log_p.sum(dim=1) - label) / max(log_p.shape[1] - 1, 1)
            losses[temperature, spread] = -float(((1 - wrong) * label + wrong * others).mean())
    temperature, spread = min(losses, key=losses.__getitem__)
    return {"temperature": temperature, "spread": spread}


def calibration_error(logits: torch.Tensor, labels: torch.Tensor, calibration: dict[str, float]) -> float:
    """Expected calibration error of the highest probability of each prompt."""
    confidence, chosen = probabilities(logits, **calibration).max(dim=1)
    return measures.calibration_error(measures.reliability(confidence.numpy(), (chosen == labels).numpy()))
