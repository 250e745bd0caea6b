"""Held-out prompts that are all right say little of how sure a router may be."""

import torch

from ir3de.route_selector_ir3de import probabilities
from ir3de.scripts.fitting.calibration import fit_calibration


def test_few_prompts_that_are_all_right_leave_doubt() -> None:
    labels = torch.arange(30) % 3
    logits = torch.nn.functional.one_hot(labels, 3).double() + 0.05 * torch.randn(
        30, 3, generator=torch.Generator().manual_seed(0)
    )
    calibration = fit_calibration(logits, labels)
    sure = float(probabilities(logits, **calibration).max(dim=1).values.mean())
    assert 0.9 < sure < 0.99, "about (30 + 1) / (30 + 2)"


def test_many_prompts_are_hardly_moved() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (4000,), generator=generator)
    logits = torch.randn(4000, 4, generator=generator).double()
    logits[torch.arange(4000), labels] += 2  # so that the softmax at temperature 1/2 holds, as of two normal laws
    calibration = fit_calibration(logits, labels)
    confidence, chosen = probabilities(logits, **calibration).max(dim=1)
    assert abs(float(confidence.mean()) - float((chosen == labels).double().mean())) < 0.02
