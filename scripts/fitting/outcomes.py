"""Fitting a router together with outcomes: what it recognises, who answers, and how well each did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.outcome_rows_ir3de import Outcome, read_rows
from ir3de.scripts.data.judged import Judged, domain_name
from ir3de.scripts.data.outside import Outside
from ir3de.scripts.data.rows import Row
from ir3de.scripts.data.validation import Validation
from ir3de.scripts.fitting.discovery import Tried, discover
from ir3de.scripts.fitting.fit import Fitted, fit_rows
from ir3de.scripts.fitting.options import FitOptions
from ir3de.specs_ir3de import ExpertSpec, nearest_name


@dataclass(frozen=True)
class JudgedFile:
    """
    A file of outcomes, read into memory.

    Args:
        path (`Path`): of the file.
        rows (`list[list[Outcome]]`): the outcomes of each prompt, with `domain` where the row says it or its `source`.
    """

    path: Path
    rows: list[list[Outcome]]

    @classmethod
    def read(cls, path: str | Path, split: str | None) -> JudgedFile:
        """Reads a file, or only the rows of a split."""
        rows = []
        for _, row, outcomes in read_rows(path):
            if split is not None and row.get("split") != split:
                continue
            domain = outcomes[0].domain
            if domain is None and isinstance(row.get("source"), str):
                domain = domain_name(row["source"])
            rows.append([outcome._replace(domain=domain) for outcome in outcomes])
        if not rows:
            raise ValueError(f"{path} has no outcomes{f' whose split is {split!r}' if split else ''}.")
        return cls(Path(path), rows)

    def without_domains(self) -> JudgedFile:
        """The same outcomes, to count by what a router recognises."""
        return JudgedFile(self.path, [[each._replace(domain=None) for each in row] for row in self.rows])


@dataclass(frozen=True)
class FittedWithOutcomes:
    """
    A router with outcomes.

    Args:
        fitted ([`Fitted`]): the router.
        tried (`list[Tried]`): numbers of domains, where one was chosen.
    """

    fitted: Fitted
    tried: list[Tried]


def fit_with_outcomes(
    config: IR3DEConfig,
    tokenizer: Any,
    embeddings: torch.Tensor,
    files: Sequence[JudgedFile],
    options: FitOptions,
    data: Iterable[Row] | None = None,
    specs: Sequence[ExpertSpec] = (),
    number: int | None = None,
    is_discovering: bool = False,
    outside: Outside | None = None,
    validation: Validation | None = None,
) -> FittedWithOutcomes:
    """Fits a router and adds outcomes to it, a contribution a file.

    Args:
        config ([`IR3DEConfig`]): without experts.
        tokenizer (`PreTrainedTokenizerBase`): that belongs to the embeddings.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
        files (`Sequence[JudgedFile]`): of outcomes.
        options ([`FitOptions`]): how it is fitted.
        data (`Iterable[Row]`, *optional*): labelled text; by default that of the outcomes.
        specs (`Sequence[ExpertSpec]`, *optional*): of the experts; by default those that were judged only route.
        number (`int`, *optional*): of domains to discover; by default chosen.
        is_discovering (`bool`): take clusters of the outcomes' prompts as domains.
        outside ([`Outside`], *optional*): prompts of none of the domains, to measure how many are noticed.
        validation ([`Validation`], *optional*): labelled prompts that are only measured on.

    Raises:
        ValueError: a prompt has no domain, or an expert that was judged has no spec.
    """
    judged = sorted({outcome.expert for file in files for row in file.rows for outcome in row})
    _check_specs(judged, specs)
    tried: list[Tried] = []
    if is_discovering:
        table = _table([row for file in files for row in file.rows], judged)
        labels, tried = discover(table, tokenizer, embeddings, number, config.max_length)
        rows = [Row(text, label) for text, label in zip(table.texts, labels, strict=True)]
        files = [file.without_domains() for file in files]
    else:
        rows = list(data) if data is not None else _labelled(files)
    experts: Sequence[ExpertSpec] = specs or [{"name": name, "domains": []} for name in judged]
    fitted = fit_rows(config, tokenizer, embeddings, rows, options, outside, validation, experts)
    known = set(fitted.model.config.domain_names)
    for file in files:
        outcomes = [o if o.domain in known else o._replace(domain=None) for row in file.rows for o in row]
        fitted.model.add_outcomes(outcomes)
    return FittedWithOutcomes(fitted, tried)


def _check_specs(judged: Sequence[str], specs: Sequence[ExpertSpec]) -> None:
    names = [spec["name"] for spec in specs]
    for name in judged if specs else ():
        if name not in names:
            raise ValueError(
                f"{name!r} was judged, but --experts lists {names}.{nearest_name(name, names)} Add it there, or leave"
                " its outcomes out."
            )


def _labelled(files: Sequence[JudgedFile]) -> list[Row]:
    """The outcomes' prompts with their domains, each once."""
    rows = {}
    for file in files:
        for outcomes in file.rows:
            text, domain = outcomes[0].text, outcomes[0].domain
            if domain is None:
                raise ValueError(
                    f"{file.path}: the prompt {text[:60]!r} has no `domain`, and no `source`. Give labelled text with"
                    " --data, or have domains discovered with --discover."
                )
            rows[text] = Row(text, domain)
    return list(rows.values())


def _table(rows: Sequence[Sequence[Outcome]], experts: Sequence[str]) -> Judged:
    """Each prompt once, with the scores of the experts that were judged on it."""
    places: dict[str, int] = {}
    for row in rows:
        places.setdefault(row[0].text, len(places))
    column = {expert: index for index, expert in enumerate(experts)}
    scores = np.full((len(places), len(experts)), np.nan)
    for row in rows:
        for outcome in row:
            scores[places[outcome.text], column[outcome.expert]] = outcome.score
    return Judged(list(places), [""] * len(places), scores, np.full_like(scores, np.nan))
