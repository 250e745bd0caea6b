"""Familiarity, measured on held-out prompts, and what a minimum of it keeps and loses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ir3de.batch_ir3de import Prompts
from ir3de.familiarity_ir3de import Array, FamiliarityScale, familiarity_table, parts_of
from ir3de.scripts.data.notices import FEW
from ir3de.scripts.data.spool import Spool
from ir3de.scripts.metrics.measures import auroc
from ir3de.scripts.reports.words import to_left
from ir3de.statistics_ir3de import count_documents

MINIMUMS = (0.01, 0.03, 0.05, 0.1)
OUTSIDE_LEAST = 10  # prompts from outside, below which nothing is learned from them
SUGGESTED = 0.03  # prompts of other sources fall below it more often than held-out ones, and 5 % is what most can spare


@dataclass(frozen=True)
class AtMinimum:
    """
    What a minimum of familiarity does.

    Args:
        minimum (`float`): a share of held-out prompts.
        lost (`dict[str, float]`): of each domain, the share of held-out prompts below it.
        noticed (`float`, *optional*): the share of prompts from outside below it, where such were given.
    """

    minimum: float
    lost: dict[str, float]
    noticed: float | None

    @property
    def lost_of_all(self) -> float:
        """The mean over the domains."""
        return sum(self.lost.values()) / len(self.lost)


@dataclass(frozen=True)
class Lesson:
    """
    What it gives to learn from prompts from outside, each of them measured by what the others teach.

    Args:
        weight (`float`): that they get; 0 where the best one may be better by chance.
        without (`float`): AUROC if nothing is learned.
        best (`float`): AUROC by the weight chosen; where none is, by the best.
        error (`float`): standard error of the difference of the two.
    """

    weight: float
    without: float
    best: float
    error: float

    def describe(self) -> str:
        """In a line."""
        kept = "so they have a say in it" if self.weight else "which may be chance, so they only measure"
        return (
            f"Learning from the prompts of --outside, a fifth left out in turn, gives AUROC {100 * self.best:.1f} %"
            f" instead of {100 * self.without:.1f} % (difference +- {100 * self.error:.1f}), {kept}."
        )


@dataclass(frozen=True)
class FamiliarityFigures:
    """
    How well familiarity tells prompts of the domains from others.

    Args:
        inside (`int`): held-out prompts.
        outside (`int`): prompts from outside; 0 where none were given.
        auroc (`float`, *optional*): how often a prompt of the domains is more familiar than one from outside.
        at (`list[AtMinimum]`): one for each of `MINIMUMS`.
        lesson ([`Lesson`], *optional*): what it gives to learn from the prompts from outside.
    """

    inside: int
    outside: int
    auroc: float | None
    at: list[AtMinimum]
    lesson: Lesson | None = None

    @property
    def suggested(self) -> AtMinimum:
        """What the suggested minimum does."""
        return next(each for each in self.at if each.minimum == SUGGESTED)

    def as_config(self) -> dict[str, Any]:
        """What config and card say of it."""
        of_outside: dict[str, Any] = {
            "outside": self.outside,
            "noticed": self.suggested.noticed,
            "auroc": self.auroc,
        }
        if self.lesson is not None and self.lesson.weight:
            of_outside["auroc_without"] = self.lesson.without
        return {
            "minimum": SUGGESTED,
            "lost": self.suggested.lost_of_all,
            **(of_outside if self.outside else {}),
        }

    def describe(self) -> str:
        """The figures as a table, and what follows."""
        head = f"Familiarity of {self.inside:,} held-out prompts"
        if self.outside:
            head += f" and {self.outside:,} from outside (AUROC {100 * (self.auroc or 0):.1f} %)"
        lines = [
            f"{head}. Below a minimum the fallback answers, or nobody:",
            "  minimum    lost  most of one domain  noticed",
        ]
        for each in self.at:
            worst = max(each.lost, key=each.lost.__getitem__)
            noticed = "-" if each.noticed is None else f"{100 * each.noticed:.1f} %"
            mark = ">" if each is self.suggested else " "
            of_domain = f"{100 * each.lost[worst]:.1f} % of {worst}"
            lines.append(
                f"{mark} {each.minimum:<7g} {100 * each.lost_of_all:5.1f} %  {to_left(of_domain, 18)}  {noticed}"
            )
        if self.lesson is not None:
            lines.append(self.lesson.describe())
        elif self.outside:
            lines.append(f"Nothing is learned from fewer than {OUTSIDE_LEAST} prompts of --outside: they only measure.")
        if 0 < self.outside < FEW:
            lines.append("Figures of so few prompts from outside tell little; 40 and more are worth having.")
        lines.append(
            f"--min-familiarity {SUGGESTED:g} is suggested where prompts may be of none of these domains."
            + ("" if self.outside else " --outside FILE, with prompts of none, measures how many it notices.")
        )
        return "\n".join(lines)


def held_out_parts(
    spool: Spool, held_out: Iterable[Mapping[str, Prompts]], logits: Mapping[str, torch.Tensor], vocab_size: int
) -> dict[str, Array]:
    """The five parts of each held-out prompt's familiarity, by tables of all prompts but those held out with it.

    Args:
        spool ([`Spool`]): all prompts.
        held_out (`Iterable[Mapping[str, Prompts]]`): by domain the prompts that were held out in turn.
        logits (`Mapping[str, torch.Tensor]`): by domain, of the held-out prompts of all splits, `(prompts, D)`.
        vocab_size (`int`): V.

    Returns:
        `dict[str, np.ndarray]`: by domain, of shape `(held-out prompts, 5)`.
    """
    documents = {domain: _documents(spool.parts(domain), vocab_size) for domain in spool.domains}
    prompts = sum(len(spool.lengths(domain)) for domain in spool.domains)
    parts: dict[str, list[Array]] = {domain: [] for domain in spool.domains}
    rest = dict(logits)
    for held in held_out:
        others = [documents[name] - count_documents(held[name], vocab_size) for name in spool.domains]
        number_held = sum(len(each.lengths) for each in held.values())
        table = familiarity_table(others, prompts - number_held).double().numpy()
        for name, each in held.items():
            number = len(each.lengths)
            parts[name].append(parts_of(table, each, rest[name][:number]))
            rest[name] = rest[name][number:]
    return {name: np.concatenate(of_domain) for name, of_domain in parts.items()}


def _documents(parts: Iterable[Prompts], vocab_size: int) -> torch.Tensor:
    """In how many prompts each token occurs."""
    count = torch.zeros(vocab_size, dtype=torch.int64)
    for prompts in parts:
        count += count_documents(prompts, vocab_size)
    return count


def figures(
    scale: FamiliarityScale,
    parts: Mapping[str, Array],
    outside: Array | None = None,
    lesson: Lesson | None = None,
) -> FamiliarityFigures:
    """How well familiarity tells prompts of the domains from others.

    Args:
        scale ([`FamiliarityScale`]): of the router.
        parts (`Mapping[str, np.ndarray]`): by domain the parts of held-out prompts, as many as the scale has.
        outside (`np.ndarray`, *optional*): likewise of prompts of no domain.
        lesson ([`Lesson`], *optional*): what it gives to learn from these.
    """
    inside = {name: scale.of(of_domain) for name, of_domain in parts.items()}
    far = np.empty(0) if outside is None else scale.of(outside)
    at = [
        AtMinimum(
            minimum,
            {name: float((values < minimum).mean()) for name, values in inside.items()},
            float((far < minimum).mean()) if len(far) else None,
        )
        for minimum in MINIMUMS
    ]
    near = np.concatenate(list(inside.values()))
    return FamiliarityFigures(len(near), len(far), auroc(near, far) if len(far) else None, at, lesson)
