"""How a router that was fitted does on labelled prompts that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ir3de.batch_ir3de import Prompts
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.prompts_ir3de import token_ids_of
from ir3de.scripts.data.rows import Row
from ir3de.scripts.fitting.calibration import calibration_error
from ir3de.scripts.metrics.measures import macro_accuracy, standard_error


@dataclass(frozen=True)
class ValidationFigures:
    """
    How a router does on labelled prompts.

    Args:
        prompts (`int`): how many.
        macro_accuracy (`float`): mean recall of their domains, 0 to 1.
        standard_error (`float`): of it.
        calibration_error (`float`): expected calibration error of the scores.
    """

    prompts: int
    macro_accuracy: float
    standard_error: float
    calibration_error: float

    def as_config(self) -> dict[str, Any]:
        """What config and card say of it."""
        return dict(vars(self))

    def describe(self) -> str:
        """The figures in a line."""
        return (
            f"On {self.prompts:,} prompts of --validation: macro accuracy {100 * self.macro_accuracy:.2f} % +-"
            f" {100 * self.standard_error:.2f}, expected calibration error {self.calibration_error:.3f}"
        )


def measure(model: IR3DEModel, rows: Sequence[Row]) -> ValidationFigures:
    """Measures a router on labelled prompts; those without a token are left out.

    Args:
        model ([`IR3DEModel`]): that was fitted.
        rows (`Sequence[Row]`): of its domains.
    """
    encoded = token_ids_of(model.tokenizer, [row.text for row in rows], model.config.max_length)
    kept = [(ids, row.domain) for ids, row in zip(encoded, rows, strict=True) if ids]
    logits = model.route(*Prompts.of([ids for ids, _ in kept]))
    labels = torch.tensor([model.config.domain_names.index(domain) for _, domain in kept])
    error = calibration_error(logits, labels, model.config.calibration or {})
    p, of = logits.numpy(), labels.numpy()
    return ValidationFigures(len(kept), macro_accuracy(of, p), standard_error(of, p), error)
