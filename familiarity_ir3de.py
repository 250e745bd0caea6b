"""How much a prompt is like what a router was fitted on: five look-ups, set against those of held-out prompts.

The five are the router's largest logit less the mean of all, and less the second; the largest mean over the prompt's
tokens of their log odds, as in naive Bayes; and of the logarithms of their document frequencies over all domains the
mean and the least. Each is measured in standard deviations of held-out prompts, cut at four of them, and the mean of
the five is placed among the held-out prompts': a familiarity of 0.05 says that 5 % of them were less familiar.

Where prompts from outside were given and it paid, a sixth look-up is how much oftener, in logarithms, the prompt's
tokens occur in prompts of the domains than in those from outside. It only speaks against a prompt: what is unlike the
prompts from outside is not therefore like the domains'.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from .batch_ir3de import Prompts, batches
from .token_router_ir3de import log_odds

PARTS = 5  # and a sixth, where prompts from outside have a say
LEVELS = 101  # quantiles of the held-out prompts' scores, from the least to the most familiar
_SMOOTHING = 0.3  # prompts, added to those that a token occurs in
_DIGITS = 6  # that are told: beyond them one prompt alone and among others may differ
_MOST = 4.0  # standard deviations, beyond which a part says no more
_FREE = 1.5  # standard deviations below the mean, from which the sixth part speaks against a prompt

Array = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


class OutsideShare(NamedTuple):
    """
    What prompts from outside have to say in familiarity.

    Args:
        prompts (`int`): how many there were, above 0.
        weight (`float`): of the sixth part, above 0, where each of the five has a fifth.
    """

    prompts: int
    weight: float


class FamiliarityScale(NamedTuple):
    """
    What held-out prompts of the router's domains scored: the yardstick of familiarity, as config.json has it.

    Args:
        means (`list[float]`): of each of the five parts, and of the sixth where there is one.
        deviations (`list[float]`): standard deviations of each, above 0.
        quantiles (`list[float]`): of the score that the parts make, at 0, 1, ... and 100 %, ascending.
        outside ([`OutsideShare`], *optional*): where prompts from outside have a say.
    """

    means: list[float]
    deviations: list[float]
    quantiles: list[float]
    outside: OutsideShare | None = None

    @classmethod
    def read(cls, fields: object) -> FamiliarityScale:
        """The scale that a config holds.

        Raises:
            ValueError: it is malformed.
        """
        expected = {"means": PARTS, "deviations": PARTS, "quantiles": LEVELS}
        if not isinstance(fields, Mapping) or fields.keys() - {"outside"} != expected.keys():
            raise ValueError(f"`familiarity` must be a mapping of {', '.join(expected)}; got {fields!r}.")
        outside = _read_outside(fields["outside"]) if "outside" in fields else None
        if outside is not None:
            expected |= {"means": PARTS + 1, "deviations": PARTS + 1}
        for key, number in expected.items():
            values = fields[key]
            if not isinstance(values, (list, tuple)) or len(values) != number or not all(map(_is_finite, values)):
                raise ValueError(f"`familiarity` must have {number} finite numbers under {key!r}, got {values!r}.")
        means, deviations, quantiles = ([float(value) for value in fields[key]] for key in expected)
        made = cls(means, deviations, quantiles, outside)
        if min(made.deviations) <= 0 or made.quantiles != sorted(made.quantiles):
            raise ValueError(
                "`familiarity` must have deviations above 0 and quantiles that ascend. Fit the router again."
            )
        return made

    @classmethod
    def measured(cls, parts: Array, outside: OutsideShare | None = None) -> FamiliarityScale:
        """The scale of held-out prompts, from their parts, `(prompts, 5)`, or `(prompts, 6)` with `outside`."""
        means, deviations = parts.mean(axis=0), np.maximum(parts.std(axis=0), 1e-9)
        made = cls(means.tolist(), deviations.tolist(), [], outside)
        return made._replace(quantiles=np.quantile(made.scores(parts), np.linspace(0, 1, LEVELS)).tolist())

    @property
    def columns(self) -> int:
        """Of the table that the parts are looked up in, beside one of log odds a domain."""
        return 1 if self.outside is None else 2

    def as_config(self) -> dict[str, Any]:
        """What [`FamiliarityScale.read`] reads."""
        fields = self._asdict()
        outside = fields.pop("outside")
        return fields if outside is None else {**fields, "outside": outside._asdict()}

    def scores(self, parts: Array) -> Array:
        """What the parts of prompts make together, `(prompts,)`: the mean of five standard scores, less what prompts
        from outside say against each.
        """
        z = ((parts - np.array(self.means)) / np.array(self.deviations)).clip(-_MOST, _MOST)
        scores = cast(Array, z[:, :PARTS].mean(axis=1))
        return scores if self.outside is None else scores + self.outside.weight * np.minimum(z[:, PARTS] + _FREE, 0)

    def of(self, parts: Array) -> Array:
        """The familiarity of prompts, 0 to 1 and of shape `(prompts,)`, from their parts, as many as the scale has."""
        return cast(Array, np.interp(self.scores(parts), self.quantiles, np.linspace(0, 1, LEVELS)))

    def place(self, score: float) -> float:
        """The share of held-out prompts that scored less than this."""
        above = bisect_right(self.quantiles, score)
        if above in (0, LEVELS):
            return float(above > 0)
        low, high = self.quantiles[above - 1], self.quantiles[above]
        return (above - 1 + (score - low) / (high - low)) / (LEVELS - 1)


class TokenFamiliarity(NamedTuple):
    """
    What a token has to do with its prompt's familiarity.

    Args:
        known (`bool`): whether it occurs in any prompt that the router was fitted on.
        adds (`float`): to the prompt's score, in standard deviations. Over the tokens it sums to what those parts make
            that are means over tokens, the third and the fourth and where it counts the sixth, before they are cut; the
            other three are of the prompt as a whole.
    """

    known: bool
    adds: float


class Familiarity:
    """
    Tells the familiarity of prompts.

    Args:
        table (`torch.Tensor` of shape `(V, D + 1)`, or `(V, D + 2)`): of `familiarity_table`.
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

    def of_tokens(self, token_ids: torch.Tensor) -> list[TokenFamiliarity]:
        """What each token of a prompt has to do with the prompt's familiarity.

        Args:
            token_ids (`torch.Tensor` of shape `(tokens,)`): of one prompt, at least one.
        """
        rows = self.rows.take(token_ids.cpu().numpy(), axis=0)
        means, deviations = np.array(self.scale.means), np.array(self.scale.deviations)
        share = self.scale.outside
        odds = rows[:, : rows.shape[1] - self.scale.columns]
        likeliest = odds[:, int(odds.sum(axis=0).argmax())]
        adds = ((likeliest - means[2]) / deviations[2] + (rows[:, -1] - means[3]) / deviations[3]) / PARTS
        if share is not None:
            against = (rows[:, -2] - means[PARTS]) / deviations[PARTS] + _FREE
            adds = adds + (share.weight * against if against.mean() < 0 else 0)
        # Some tokens, such as those that pad, occur in no prompt whatever.
        known = rows[:, -1] > self.rows[:, -1].min()
        pairs = zip(known.tolist(), (adds / len(rows)).tolist(), strict=True)
        return [TokenFamiliarity(*pair) for pair in pairs]

    def _of_one(self, token_ids: torch.Tensor, logits: torch.Tensor) -> float:
        """The same of a single prompt, in plain Python: NumPy's calls would cost a tenth of a route."""
        rows = self.rows.take(token_ids.cpu().numpy(), axis=0)
        *odds, frequency = np.add.reduce(rows).tolist()
        against = None if self.scale.outside is None else odds.pop()
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
        for value, mean, deviation in zip(parts, self.scale.means, self.scale.deviations, strict=False):
            z = (value - mean) / deviation
            score += _MOST if z > _MOST else -_MOST if z < -_MOST else z
        score /= PARTS
        if self.scale.outside is not None and against is not None:
            z = (against / number - self.scale.means[PARTS]) / self.scale.deviations[PARTS]
            score += self.scale.outside.weight * min(max(z, -_MOST) + _FREE, 0)
        return round(self.scale.place(score), _DIGITS)


def familiarity_table(
    documents: Sequence[torch.Tensor], prompts: int, outside: tuple[torch.Tensor, int] | None = None
) -> torch.Tensor:
    """What every token says of familiarity.

    Args:
        documents (`Sequence[torch.Tensor]` of shape `(V,)`): for each of the D domains, in how many of its prompts each
            token occurs.
        prompts (`int`): of all domains.
        outside (`tuple`, *optional*): in how many prompts from outside each token occurs, of shape `(V,)`, and how many
            of these there are.

    Returns:
        `torch.Tensor` of shape `(V, D + 1)`, float32: log odds of each domain, and the log document frequency; with
        `outside` of shape `(V, D + 2)`, and between the two stands `outside_odds`.
    """
    count = torch.stack(list(documents)).sum(dim=0)
    frequency = ((count.double() + _SMOOTHING) / prompts).log()
    columns = [frequency] if outside is None else [outside_odds(count, prompts, *outside), frequency]
    return torch.cat([log_odds(documents), torch.stack(columns, dim=1)], dim=1).float()


def outside_odds(count: torch.Tensor, prompts: int, outside: torch.Tensor, outside_prompts: int) -> torch.Tensor:
    """How much oftener each token occurs in prompts of the domains than in prompts from outside, as a logarithm.

    Args:
        count (`torch.Tensor` of shape `(V,)`): in how many prompts of the domains each token occurs.
        prompts (`int`): how many these are.
        outside (`torch.Tensor` of shape `(V,)`): likewise of the prompts from outside.
        outside_prompts (`int`): how many these are.

    Returns:
        `torch.Tensor` of shape `(V,)`, float64: 0 for a token that neither has.
    """
    least = _SMOOTHING / outside_prompts  # what a rarer token's share says is chance
    return ((count.double() / prompts + least) / (outside.double() / outside_prompts + least)).log()


def parts_of(table: Array, prompts: Prompts, logits: torch.Tensor) -> Array:
    """The parts of each prompt's familiarity.

    Args:
        table (`np.ndarray` of shape `(V, D + 1)`, or `(V, D + 2)`): of `familiarity_table`, float64.
        prompts ([`Prompts`]): each of at least one token.
        logits (`torch.Tensor` of shape `(prompts, D)`): by the router's own variant.

    Returns:
        `np.ndarray` of shape `(prompts, 5)`, or `(prompts, 6)` where the table knows prompts from outside, float64.
    """
    ordered = np.sort(logits.double().cpu().numpy(), axis=1)
    gaps = ordered[:, -1] - ordered.mean(axis=1), ordered[:, -1] - ordered[:, -2:][:, 0]
    means = token_means(table, prompts)
    rarest = np.concatenate([np.minimum.reduceat(table[ids, -1], starts) for ids, starts, _ in _looked_up(prompts)])
    domains = logits.shape[1]
    odds, outside = means[:, :domains].max(axis=1), means[:, domains:-1]
    return np.column_stack([*gaps, odds, means[:, -1], rarest, outside])


def token_means(table: Array, prompts: Prompts) -> Array:
    """The mean over each prompt's tokens of a table's columns: `(V, columns)` to `(prompts, columns)`."""
    sums = [
        np.add.reduceat(table[ids], starts, axis=0) / lengths[:, None] for ids, starts, lengths in _looked_up(prompts)
    ]
    return np.concatenate(sums)


def _looked_up(prompts: Prompts) -> Iterator[tuple[Integers, Integers, Integers]]:
    """Of one part of the prompts after another the token ids, where in them each prompt begins, and the lengths."""
    for part in batches(prompts):
        lengths = part.lengths.cpu().numpy()
        yield part.token_ids.cpu().numpy(), lengths.cumsum() - lengths, lengths


def _read_outside(fields: object) -> OutsideShare:
    """What a config says of prompts from outside.

    Raises:
        ValueError: it is malformed.
    """
    names = OutsideShare._fields
    if not isinstance(fields, Mapping) or tuple(sorted(fields)) != names or not all(map(_is_finite, fields.values())):
        raise ValueError(f"`familiarity` must have the numbers {' and '.join(names)} under 'outside', got {fields!r}.")
    prompts, weight = fields["prompts"], fields["weight"]
    if not isinstance(prompts, int) or prompts < 1 or weight <= 0:
        raise ValueError(
            f"`familiarity` must have a whole number of prompts under 'outside', and both above 0: {fields!r}."
        )
    return OutsideShare(prompts, float(weight))


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
