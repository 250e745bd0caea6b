"""How much a prompt is like what a router was fitted on: five look-ups, set against those of held-out prompts.

The five are the router's largest logit less the mean of all, and less the second; the largest mean over the prompt's
tokens of their log odds, as in naive Bayes; and of the logarithms of their document frequencies over all domains the
mean and the least. Each is measured in standard deviations of held-out prompts, cut at four of them, and the mean of
the five is placed among the held-out prompts': a familiarity of 0.05 says that 5 % of them were less familiar.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from .batch_ir3de import Prompts, batches
from .token_router_ir3de import log_odds

PARTS = 5
COLUMNS = 1  # of the table, beside one of log odds a domain: the log document frequency
LEVELS = 101  # quantiles of the held-out prompts' scores, from the least to the most familiar
_SMOOTHING = 0.3  # prompts, added to those that a token occurs in
_DIGITS = 6  # that are told: beyond them one prompt alone and among others may differ
_MOST = 4.0  # standard deviations, beyond which a part says no more

Array = NDArray[np.floating[Any]]


class FamiliarityScale(NamedTuple):
    """
    What held-out prompts of the router's domains scored: the yardstick of familiarity, as config.json has it.

    Args:
        means (`list[float]`): of each of the five parts.
        deviations (`list[float]`): standard deviations of each, above 0.
        quantiles (`list[float]`): of the mean standard score, at 0, 1, ... and 100 %, ascending.
    """

    means: list[float]
    deviations: list[float]
    quantiles: list[float]

    @classmethod
    def read(cls, fields: object) -> FamiliarityScale:
        """The scale that a config holds.

        Raises:
            ValueError: it is malformed.
        """
        expected = {"means": PARTS, "deviations": PARTS, "quantiles": LEVELS}
        if not isinstance(fields, Mapping) or fields.keys() != expected.keys():
            raise ValueError(f"`familiarity` must be a mapping of {', '.join(expected)}; got {fields!r}.")
        for key, number in expected.items():
            values = fields[key]
            if not isinstance(values, (list, tuple)) or len(values) != number or not all(map(_is_finite, values)):
                raise ValueError(f"`familiarity` must have {number} finite numbers under {key!r}, got {values!r}.")
        made = cls(**{key: [float(value) for value in fields[key]] for key in expected})
        if min(made.deviations) <= 0 or made.quantiles != sorted(made.quantiles):
            raise ValueError(
                "`familiarity` must have deviations above 0 and quantiles that ascend. Fit the router again."
            )
        return made

    @classmethod
    def measured(cls, parts: Array) -> FamiliarityScale:
        """The scale of held-out prompts, from their parts, of shape `(prompts, 5)`."""
        means, deviations = parts.mean(axis=0), np.maximum(parts.std(axis=0), 1e-9)
        quantiles = np.quantile(_scores(parts, means, deviations), np.linspace(0, 1, LEVELS))
        return cls(means.tolist(), deviations.tolist(), quantiles.tolist())

    def as_config(self) -> dict[str, list[float]]:
        """What [`FamiliarityScale.read`] reads."""
        return dict(self._asdict())

    def of(self, parts: Array) -> Array:
        """The familiarity of prompts, 0 to 1 and of shape `(prompts,)`, from their parts, of shape `(prompts, 5)`."""
        scores = _scores(parts, np.array(self.means), np.array(self.deviations))
        return cast(Array, np.interp(scores, self.quantiles, np.linspace(0, 1, LEVELS)))

    def place(self, score: float) -> float:
        """The share of held-out prompts that scored less than this."""
        above = bisect_right(self.quantiles, score)
        if above in (0, LEVELS):
            return float(above > 0)
        low, high = self.quantiles[above - 1], self.quantiles[above]
        return (above - 1 + (score - low) / (high - low)) / (LEVELS - 1)


class Familiarity:
    """
    Tells the familiarity of prompts.

    Args:
        table (`torch.Tensor` of shape `(V, D + 1)`): of `familiarity_table`.
        scale ([`FamiliarityScale`]): that it is measured on.
    """

    def __init__(self, table: torch.Tensor, scale: FamiliarityScale) -> None:
        self.rows: Array = table.detach().double().cpu().numpy()
        self.scale = scale
        self.rests = not bool(self.rows[:, -1].any())

    def of(self, prompts: Prompts, logits: torch.Tensor) -> list[float]:
        """The familiarity of each prompt, 0 to 1.

        Args:
            prompts ([`Prompts`]): each of at least one token.
            logits (`torch.Tensor` of shape `(prompts, D)`): by the router's own variant.
        """
        if len(logits) == 1:
            return [self._of_one(prompts.token_ids, logits)]
        return cast("list[float]", self.scale.of(parts_of(self.rows, prompts, logits)).round(_DIGITS).tolist())

    def _of_one(self, token_ids: torch.Tensor, logits: torch.Tensor) -> float:
        """The same of a single prompt, in plain Python: NumPy's calls would cost a tenth of a route."""
        rows = self.rows.take(token_ids.cpu().numpy(), axis=0)
        *odds, frequency = np.add.reduce(rows).tolist()
        scores = logits.tolist()[0]
        scores.sort()
        largest, number = scores[-1], len(rows)
        parts = (
            largest - sum(scores) / len(scores),
            largest - scores[-2:][0],
            max(odds) / number,
            frequency / number,
            float(np.minimum.reduce(rows[:, -1])),
        )
        score = 0.0
        for value, mean, deviation in zip(parts, self.scale.means, self.scale.deviations, strict=True):
            z = (value - mean) / deviation
            score += _MOST if z > _MOST else -_MOST if z < -_MOST else z
        return round(self.scale.place(score / PARTS), _DIGITS)


def familiarity_table(documents: Sequence[torch.Tensor], prompts: int) -> torch.Tensor:
    """What every token says of familiarity.

    Args:
        documents (`Sequence[torch.Tensor]` of shape `(V,)`): for each of the D domains, in how many of its prompts each
            token occurs.
        prompts (`int`): of all domains.

    Returns:
        `torch.Tensor` of shape `(V, D + 1)`, float32: log odds of each domain, and the log document frequency.
    """
    count = torch.stack(list(documents)).sum(dim=0)
    frequency = ((count.double() + _SMOOTHING) / prompts).log()
    return torch.cat([log_odds(documents), frequency.unsqueeze(1)], dim=1).float()


def parts_of(table: Array, prompts: Prompts, logits: torch.Tensor) -> Array:
    """The five parts of each prompt's familiarity.

    Args:
        table (`np.ndarray` of shape `(V, D + 1)`): of `familiarity_table`, float64.
        prompts ([`Prompts`]): each of at least one token.
        logits (`torch.Tensor` of shape `(prompts, D)`): by the router's own variant.

    Returns:
        `np.ndarray` of shape `(prompts, 5)`, float64.
    """
    ordered = np.sort(logits.double().cpu().numpy(), axis=1)
    gaps = ordered[:, -1] - ordered.mean(axis=1), ordered[:, -1] - ordered[:, -2:][:, 0]
    of_tokens = np.concatenate([_of_tokens(table, part) for part in batches(prompts)])
    return np.column_stack([*gaps, of_tokens])


def _of_tokens(table: Array, prompts: Prompts) -> Array:
    """The parts that are looked up token by token, `(prompts, 3)`."""
    lengths = prompts.lengths.cpu().numpy()
    starts = lengths.cumsum() - lengths
    rows = table[prompts.token_ids.cpu().numpy()]
    means = np.add.reduceat(rows, starts, axis=0) / lengths[:, None]
    rarest = np.minimum.reduceat(rows[:, -1], starts)
    return np.column_stack([means[:, :-1].max(axis=1), means[:, -1], rarest])


def _scores(parts: Array, means: Array, deviations: Array) -> Array:
    """The mean standard score of each prompt, `(prompts,)`."""
    return cast(Array, ((parts - means) / deviations).clip(-_MOST, _MOST).mean(axis=1))


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
