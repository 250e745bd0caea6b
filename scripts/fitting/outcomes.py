"""Fitting a router together with outcomes: what it recognises, who answers, and how well each did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.outcome_rows_ir3de import Outcome, read_rows
from ir3de.scripts.data.judged import Judged, domain_name
from ir3de.scripts.data.outside import Outside
from ir3de.scripts.data.rows import Row
from ir3de.scripts.data.validation import Validation, check_apart
from ir3de.scripts.fitting.discovery import Tried, discover
from ir3de.scripts.fitting.fit import Fitted, fit_rows
from ir3de.scripts.fitting.options import FitOptions
from ir3de.specs_ir3de import ExpertSpec, nearest_name


@dataclass(frozen=True)
class JudgedFile:
    """
    A file of outcomes, which is read in a stream as often as it is needed.

    Args:
        path (`Path`): of the file.
        split (`str`, *optional*): only rows whose `split` is this.
        experts (`tuple[str, ...]`): that were judged, sorted.
        tells_domains (`bool`): whether its domains count, or what a router recognises.
    """

    path: Path
    split: str | None
    experts: tuple[str, ...]
    tells_domains: bool = True

    @classmethod
    def read(cls, path: str | Path, split: str | None) -> JudgedFile:
        """Reads a file once, and checks it.

        Raises:
            ValueError: a row is malformed, or there are none.
        """
        rows = cls(Path(path), split, ()).rows()
        experts = {outcome.expert for row in rows for outcome in row}
        if not experts:
            raise ValueError(f"{path} has no outcomes{f' whose split is {split!r}' if split else ''}.")
        return cls(Path(path), split, tuple(sorted(experts)))

    def rows(self) -> Iterator[list[Outcome]]:
        """The outcomes of each prompt, with `domain` where the row says it or its `source`."""
        for _, row, outcomes in read_rows(self.path):
            if self.split is not None and row.get("split") != self.split:
                continue
            domain = outcomes[0].domain
            if domain is None and isinstance(row.get("source"), str):
                domain = domain_name(row["source"])
            yield [outcome._replace(domain=domain if self.tells_domains else None) for outcome in outcomes]


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
    tokenizer: PreTrainedTokenizerBase,
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
        outside ([`Outside`], *optional*): prompts of none of the domains: how many are noticed, and what to learn
            from them.
        validation ([`Validation`], *optional*): labelled prompts that are only measured on.

    Raises:
        ValueError: a prompt has no domain, or an expert that was judged has no spec.
    """
    judged = sorted({expert for file in files for expert in file.experts})
    _check_specs(judged, specs)
    tried: list[Tried] = []
    outside, validation = outside or Outside(), validation or Validation()
    if is_discovering:
        table = _table([row for file in files for row in file.rows()], judged)
        check_apart([Row(text, "") for text in table.texts], outside, Validation())
        labels, tried = discover(table, tokenizer, embeddings, number, config.max_length)
        rows: Iterable[Row] = [Row(text, label) for text, label in zip(table.texts, labels, strict=True)]
        files = [replace(file, tells_domains=False) for file in files]
    else:
        rows = data if data is not None else _labelled(files)
        if data is None and (outside or validation):
            check_apart(_labelled(files), outside, validation)
    experts: Sequence[ExpertSpec] = specs or [{"name": name, "domains": []} for name in judged]
    fitted = fit_rows(config, tokenizer, embeddings, rows, options, outside, validation, experts)
    known = set(fitted.model.config.domain_names)
    for file in files:
        fitted.model.add_outcomes(_in_known_domains(file, known))
    return FittedWithOutcomes(fitted, tried)


def _in_known_domains(file: JudgedFile, known: set[str]) -> Iterator[Outcome]:
    """The outcomes of a file; a domain that is not known is left open."""
    for row in file.rows():
        for outcome in row:
            yield outcome if outcome.domain in known else outcome._replace(domain=None)


def _check_specs(judged: Sequence[str], specs: Sequence[ExpertSpec]) -> None:
    names = [spec["name"] for spec in specs]
    for name in judged if specs else ():
        if name not in names:
            raise ValueError(
                f"{name!r} was judged, but --experts lists {names}.{nearest_name(name, names)} Add it there, or leave"
                " its outcomes out."
            )


def _labelled(files: Sequence[JudgedFile]) -> Iterator[Row]:
    """The outcomes' prompts with their domains, each once."""
    seen = set()
    for file in files:
        for outcomes in file.rows():
            text, domain = outcomes[0].text, outcomes[0].domain
            if domain is None:
                raise ValueError(
                    f"{file.path}: the prompt {text[:60]!r} has no `domain`, and no `source`. Give labelled text with"
                    " --data, or have domains discovered with --discover."
                )
            key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                yield Row(text, domain)


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
