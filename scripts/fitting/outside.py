"""Learning from prompts of none of the domains what is unfamiliar, where that pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ir3de.batch_ir3de import Prompts
from ir3de.familiarity_ir3de import Array, FamiliarityScale, OutsideShare, outside_odds, parts_of, token_means
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.prompts_ir3de import token_ids_of
from ir3de.scripts.data.columns import Row
from ir3de.scripts.data.groups import Groups
from ir3de.scripts.fitting.familiarity import OUTSIDE_LEAST, Lesson
from ir3de.scripts.metrics.measures import auroc, auroc_difference
from ir3de.statistics_ir3de import count_documents

FOLDS = 5  # of the prompts from outside, one of which is left out at a time
WEIGHTS = (0.0, 0.2, 0.4)  # beside .2 for each of the five parts: with more, prompts of other kinds are noticed less


class Outsiders(NamedTuple):
    """
    Tokenized prompts of no domain.

    Args:
        prompts ([`Prompts`]): each of at least one token.
        folds (`np.ndarray`): which fold each is left out in: the same for those that are nearly equal.
    """

    prompts: Prompts
    folds: Array

    @classmethod
    def of(cls, model: IR3DEModel, texts: Sequence[str]) -> Outsiders:
        """Prompts as a router reads them; those without a token are left out."""
        groups = Groups()
        encoded = token_ids_of(model.tokenizer, list(texts), model.config.max_length)
        kept = [(ids, groups.of(Row(text, ""))) for ids, text in zip(encoded, texts, strict=True) if ids]
        return cls(Prompts.of([ids for ids, _ in kept]), np.array([group % FOLDS for _, group in kept]))


class Told(NamedTuple):
    """
    Parts of familiarity by domain, `(held-out prompts, 5)` each or 6, and of prompts from outside likewise.
    """

    inside: dict[str, Array]
    outside: Array


def learn_outside(
    model: IR3DEModel, inside: Mapping[str, Array], held_out: Sequence[Mapping[str, Prompts]], outsiders: Outsiders
) -> tuple[Told, Lesson | None]:
    """Lets prompts from outside have a say in a router's familiarity, if that notices them better for sure: of some
    weights the least that is behind the best by no more than a standard error of their difference.

    Args:
        model ([`IR3DEModel`]): with a scale of familiarity; it gets another one where they have a say.
        inside (`Mapping[str, np.ndarray]`): by domain the five parts of held-out prompts.
        held_out (`Sequence[Mapping[str, Prompts]]`): these prompts, of one split after another.
        outsiders ([`Outsiders`]): prompts of no domain.

    Returns:
        the parts that the router's scale now takes, each by tables that do not know the prompt itself; and what was
        found, None where there are too few to learn from.
    """
    assert model.familiarity_table is not None
    table = model.familiarity_table.weight.detach().double().cpu().numpy()
    five = Told(dict(inside), parts_of(table, outsiders.prompts, model.route(*outsiders.prompts)))
    number = len(outsiders.folds)
    if number < OUTSIDE_LEAST or len(set(outsiders.folds.tolist())) < FOLDS:
        return five, None
    six = _with_sixth(model, five, held_out, outsiders)
    parts = np.concatenate(list(six.inside.values()))
    scales = [_scale(parts, number, weight) for weight in WEIGHTS]
    near = [scale.scores(parts[:, : len(scale.means)]) for scale in scales]
    far = [scale.scores(six.outside[:, : len(scale.means)]) for scale in scales]
    values = [auroc(*pair) for pair in zip(near, far, strict=True)]
    best = int(np.argmax(values))
    errors = [auroc_difference((near[best], far[best]), pair)[1] for pair in zip(near, far, strict=True)]
    chosen = next(i for i, value in enumerate(values) if values[best] - value <= errors[i])
    shown = chosen or 1 + int(np.argmax(values[1:]))
    with_them, without = (_familiarity_of(scales[i], parts, six.outside) for i in (shown, 0))
    error = auroc_difference(with_them, without)[1]
    lesson = Lesson(WEIGHTS[chosen], auroc(*without), auroc(*with_them), error)
    if not chosen:
        return five, lesson
    model.set_familiarity(scales[chosen], count_documents(outsiders.prompts, model.config.vocab_size))
    return six, lesson


def _familiarity_of(scale: FamiliarityScale, inside: Array, outside: Array) -> tuple[Array, Array]:
    """The familiarity of prompts inside and outside as a router tells it, which all other figures are of: what lies
    below every held-out prompt is 0 alike.
    """
    size = len(scale.means)
    return scale.of(inside[:, :size]), scale.of(outside[:, :size])


def _scale(parts: Array, number: int, weight: float) -> FamiliarityScale:
    """The scale of held-out prompts from their six parts, where prompts from outside have this weight."""
    if not weight:
        return FamiliarityScale.measured(parts[:, :-1])
    return FamiliarityScale.measured(parts, OutsideShare(number, weight))


def _with_sixth(model: IR3DEModel, five: Told, held_out: Sequence[Mapping[str, Prompts]], outsiders: Outsiders) -> Told:
    """The sixth part beside the five, by sums of neither the held-out prompts nor the fold that is left out."""
    size = model.config.vocab_size
    statistics = [model.statistics[name] for name in five.inside]
    documents = torch.stack([each.documents for each in statistics if each.documents is not None]).sum(dim=0)
    prompts = sum(each.rows("prompts") for each in statistics)
    inside: dict[str, list[Array]] = {name: [] for name in five.inside}
    outside = np.empty(len(outsiders.folds))
    by_prompt = outsiders.prompts.token_ids.split(outsiders.prompts.lengths.tolist())
    for fold in range(FOLDS):
        held = held_out[fold % len(held_out)]
        rest = documents - sum(count_documents(each, size) for each in held.values())
        left_out = outsiders.folds == fold
        known = Prompts.of([ids.tolist() for ids, out in zip(by_prompt, left_out, strict=True) if not out])
        unknown = Prompts.of([ids.tolist() for ids, out in zip(by_prompt, left_out, strict=True) if out])
        counted = sum(len(each.lengths) for each in held.values())
        odds = outside_odds(rest, prompts - counted, count_documents(known, size), len(known.lengths))
        column = odds.float().double().unsqueeze(1).numpy()
        outside[left_out] = token_means(column, unknown)[:, 0]
        if fold < len(held_out):
            for name, each in held.items():
                inside[name].append(token_means(column, each)[:, 0])
    return Told(
        {name: np.column_stack([five.inside[name], np.concatenate(parts)]) for name, parts in inside.items()},
        np.column_stack([five.outside, outside]),
    )
