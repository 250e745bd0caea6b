"""What to expect of prompts of other sources than a router was fitted on: each source left out in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.scripts.data.spool import Spool
from ir3de.scripts.fitting.holding_out import source_splits
from ir3de.scripts.fitting.search import Candidate, Split, search
from ir3de.scripts.metrics.measures import mean_recall, standard_error_of

MOST_OPERATIONS = 2e11  # which take some seconds


@dataclass(frozen=True)
class ElsewhereFigures:
    """
    How a router does on sources that it was not fitted on.

    Args:
        domains (`int`): that have several sources, and are measured.
        of_domains (`int`): that there are.
        prompts (`int`): of sources left out.
        macro_accuracy (`float`): mean recall of these domains, 0 to 1.
        standard_error (`float`): of it, of the prompts; sources may differ by more.
        same_sources (`float`): the macro accuracy of the same domains on held-out prompts whose sources were fitted on.
    """

    domains: int
    of_domains: int
    prompts: int
    macro_accuracy: float
    standard_error: float
    same_sources: float

    def as_config(self) -> dict[str, Any]:
        """What config and card say of it."""
        return dict(vars(self))

    def describe(self) -> str:
        """The figures in a line."""
        which = "" if self.domains == self.of_domains else f", in the {self.domains} domains that have several"
        return (
            f"On prompts of other sources expect less: with each source left out in turn{which}, macro accuracy is"
            f" {100 * self.macro_accuracy:.2f} % +- {100 * self.standard_error:.2f}, and on held-out prompts of the"
            f" same sources {100 * self.same_sources:.2f} %."
        )


@dataclass(frozen=True)
class TooMuch:
    """That leaving sources out was not tried, since it would take long."""

    def describe(self) -> str:
        """The reason in a line."""
        return (
            "What to expect of other sources was not measured, since that would take long with so many rows and"
            " features: --validation FILE, with rows of other sources, measures it."
        )


def measure_elsewhere(
    config: IR3DEConfig, embeddings: torch.Tensor, spool: Spool, best: Candidate
) -> ElsewhereFigures | TooMuch | None:
    """Measures the candidate that was chosen on sources that are left out in turn.

    Args:
        config ([`IR3DEConfig`]): with what was chosen.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
        spool ([`Spool`]): all prompts.
        best ([`Candidate`]): the one that was chosen.

    Returns:
        the figures; [`TooMuch`] where they would take long; None where no domain has several sources.
    """
    splits = source_splits(spool)
    if not splits:
        return None
    if _operations(config, embeddings, splits) > MOST_OPERATIONS:
        return TooMuch()
    variants = [best.config["variant"]]
    tried = search(config, embeddings, splits, variants, grids=best.grids, kind="left-out sources")[0]
    right = {name: values.double() for name, values in tried.right.items() if len(values)}
    recalls = {name: float(values.mean()) for name, values in right.items()}
    numbers = {name: len(values) for name, values in right.items()}
    return ElsewhereFigures(
        len(recalls),
        len(spool.domains),
        sum(numbers.values()),
        mean_recall(recalls),
        standard_error_of(recalls, numbers),
        mean_recall({name: best.recalls[name] for name in recalls}),
    )


def _operations(config: IR3DEConfig, embeddings: torch.Tensor, splits: Sequence[Split]) -> float:
    """Floating-point operations of the sums and solutions, about."""
    width = config.features.width(embeddings.shape[1])
    rows = sum(len(prompts.lengths) for split in splits for prompts in split.sample.values())
    tokens = sum(int(p.token_ids.unique().numel()) for split in splits for p in split.sample.values())
    return 2.0 * width**2 * (rows + tokens + len(splits) * width)
