"""Fitting a router: tokenized once, chosen on held-out prompts, and fitted on all of them."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ir3de.choices_ir3de import FEATURE_MAPS, VARIANTS
from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.familiarity_ir3de import Array, FamiliarityScale
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.names_ir3de import check_names
from ir3de.scripts.data.groups import Groups
from ir3de.scripts.data.inspection import maybe_swapped
from ir3de.scripts.data.notices import Notices
from ir3de.scripts.data.outside import Outside
from ir3de.scripts.data.rows import Row
from ir3de.scripts.data.spool import Spool
from ir3de.scripts.data.validation import Validation
from ir3de.scripts.fitting.calibration import calibration_error, fit_calibration
from ir3de.scripts.fitting.elsewhere import ElsewhereFigures, TooMuch, measure_elsewhere
from ir3de.scripts.fitting.familiarity import FamiliarityFigures, figures, held_out_parts
from ir3de.scripts.fitting.holding_out import HELD_OUT_LEAST, held_out_prompts, held_out_rows, splits
from ir3de.scripts.fitting.options import AUTO, FitOptions
from ir3de.scripts.fitting.outside import Outsiders, learn_outside
from ir3de.scripts.fitting.search import Candidate, Grids, best_of, describe, search
from ir3de.scripts.fitting.validation import ValidationFigures, measure
from ir3de.scripts.reports.progress import progress
from ir3de.specs_ir3de import ExpertSpec
from ir3de.statistics_ir3de import DomainStatistics

Number = TypeVar("Number", int, float)

RFF_MOST_BYTES = 4 << 30  # of sums, above which domains are many: what is tried then is `MANY`
MANY: dict[str, list[str]] = {"unit": ["prompt"]}  # on 150 intents avg is 6 points behind, and votes are 19
MANY_SMOOTHING = 0.03  # of naive Bayes: a tenth of the usual, since a domain has few prompts of many
MANY_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # finer than `LEXICAL_SHARES`, since there is more held-out text


@dataclass(frozen=True)
class Fitted:
    """
    A router that was fitted, and what was measured on the way.

    Args:
        model ([`IR3DEModel`]): the router.
        candidates (`list[Candidate]`): all that were tried.
        chosen ([`Candidate`]): one of them.
        skipped (`int`): rows without a token, which were left out.
        familiarity ([`FamiliarityFigures`], *optional*): what it tells apart; None with too few held-out prompts.
        validation ([`ValidationFigures`], *optional*): how it does on prompts that were given for that.
        notes (`list[str]`): what a person should know of the data.
        held_out (`dict[str, torch.Tensor]`): by domain, the row numbers of the prompts that `chosen` was measured on.
        elsewhere ([`ElsewhereFigures`] or [`TooMuch`], *optional*): how it does on sources left out; None where no
            domain is of several.
    """

    model: IR3DEModel
    candidates: list[Candidate]
    chosen: Candidate
    skipped: int
    familiarity: FamiliarityFigures | None
    validation: ValidationFigures | None = None
    notes: list[str] = field(default_factory=list)
    held_out: dict[str, torch.Tensor] = field(default_factory=dict)
    elsewhere: ElsewhereFigures | TooMuch | None = None

    def describe(self) -> str:
        """The best candidate of each kind and the one chosen, as a table, and what familiarity tells apart."""
        number = sum(len(rows) for rows in self.chosen.logits.values())
        choice = f"On {number:,} held-out prompts:\n{describe(self.candidates, self.chosen)}"
        parts = (self.elsewhere, self.validation, self.familiarity)
        return "\n".join([choice, *(part.describe() for part in parts if part is not None)])


def fit_rows(
    config: IR3DEConfig,
    tokenizer: PreTrainedTokenizerBase,
    embeddings: torch.Tensor,
    rows: Iterable[Row],
    options: FitOptions,
    outside: Outside | None = None,
    validation: Validation | None = None,
    specs: Sequence[ExpertSpec] = (),
) -> Fitted:
    """Fits a router to labelled prompts, which are tokenized to a temporary folder first.

    Args:
        config ([`IR3DEConfig`]): with one expert a domain, or none, which gives each domain one that only routes.
        tokenizer (`PreTrainedTokenizerBase`): that belongs to the embeddings.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
        rows (`Iterable[Row]`): read once, in a stream.
        options ([`FitOptions`]): how it is fitted.
        outside ([`Outside`], *optional*): prompts of none of the domains: how many are noticed, and what to learn
            from them.
        validation ([`Validation`], *optional*): labelled prompts that are only measured on.
        specs (`Sequence[ExpertSpec]`, *optional*): of experts that say which domains they serve, for a config without.

    Raises:
        ValueError: the rows make no router, or their domains are not the experts.
    """
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder))
        outside, validation, notices, groups = outside or Outside(), validation or Validation(), Notices(), Groups()
        spool.fill(validation.watch(outside.watch(notices.watch(rows))), tokenizer, config.max_length, groups)
        check_domains(spool)
        notices.check_groups()
        outside.check(spool.domains)
        validation.check(spool.domains)
        _match_experts(config, spool.domains, specs)
        options.set_minimums(config)
        fitted = fit_router(config, tokenizer, embeddings, spool, options, outside.texts)
    measured = {**(fitted.model.config.evaluation or {}), "scripts": notices.shares_of_scripts()}
    fitted.model.config.evaluation = measured
    notes = [*outside.notes(), *groups.notes(), *notices.notes(), *validation.notes()]
    if not validation.rows:
        return replace(fitted, notes=notes)
    figures = measure(fitted.model, validation.rows)
    fitted.model.config.evaluation = {**measured, "validation": figures.as_config()}
    return replace(fitted, notes=notes, validation=figures)


def fit_router(
    config: IR3DEConfig,
    tokenizer: PreTrainedTokenizerBase,
    embeddings: torch.Tensor,
    spool: Spool,
    options: FitOptions,
    outside: Sequence[str] = (),
) -> Fitted:
    """Chooses on held-out prompts what the options leave open, and fits on all prompts.

    Args:
        config ([`IR3DEConfig`]): with the experts; the choice is written into it.
        tokenizer (`PreTrainedTokenizerBase`): that belongs to the embeddings.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
        spool ([`Spool`]): the tokenized prompts.
        options ([`FitOptions`]): how it is fitted.
        outside (`Sequence[str]`): prompts of none of the domains: how many are noticed, and what to learn
            from them.

    Raises:
        ValueError: an option is out of range.
    """
    if not options.standard_errors >= 0:
        raise ValueError(f"--standard-errors must be a number of at least 0, got {options.standard_errors}.")
    candidates = _candidates(config, embeddings, spool, options)
    best = _choose(candidates, options.standard_errors)
    if best.config["feature_map"] == "rff":
        best = _with_all_features(config, embeddings, spool, best)
        candidates.append(best)
    for key, value in best.config.items():
        setattr(config, key, value)
    labels = torch.cat([torch.full((len(rows),), i) for i, rows in enumerate(best.logits.values())])
    logits = torch.cat(list(best.logits.values()))
    config.calibration = fit_calibration(logits, labels)
    config.evaluation = evaluation(best, calibration_error(logits, labels, config.calibration))
    elsewhere = measure_elsewhere(config, embeddings, spool, best)
    if isinstance(elsewhere, ElsewhereFigures):
        config.evaluation["elsewhere"] = elsewhere.as_config()
    parts = held_out_parts(spool, held_out_prompts(spool), best.logits, len(embeddings))
    _set_familiarity(config, np.concatenate(list(parts.values())), options)
    model = IR3DEModel.from_embeddings(config, embeddings, tokenizer)
    model.fit(collect(model, spool))
    familiarity = _familiarity(model, parts, spool, outside) if config.familiarity else None
    if familiarity is not None:
        config.evaluation["familiarity"] = familiarity.as_config()
    held_out = held_out_rows(spool)
    return Fitted(model, candidates, best, spool.skipped, familiarity, held_out=held_out, elsewhere=elsewhere)


def _set_familiarity(config: IR3DEConfig, parts: Array, options: FitOptions) -> None:
    """Writes the yardstick of familiarity into the config, and the minimum that a person asks for."""
    if len(parts) >= HELD_OUT_LEAST:
        config.familiarity = FamiliarityScale.measured(parts).as_config()
    if options.min_familiarity:
        config.min_familiarity = options.min_familiarity
    if config.min_familiarity and not config.familiarity:
        raise ValueError(
            f"--min-familiarity needs {HELD_OUT_LEAST} held-out prompts to measure familiarity on, and there are"
            f" {len(parts)}: give more rows, or leave it out."
        )


def _familiarity(
    model: IR3DEModel, parts: dict[str, Array], spool: Spool, outside: Sequence[str]
) -> FamiliarityFigures:
    """How well a router tells its prompts from others, once it has learned from these what pays."""
    outsiders = Outsiders.of(model, outside)
    if not len(outsiders.folds):
        return figures(FamiliarityScale.read(model.config.familiarity), parts)
    told, lesson = learn_outside(model, parts, list(held_out_prompts(spool)), outsiders)
    return figures(FamiliarityScale.read(model.config.familiarity), told.inside, told.outside, lesson)


def _choose(candidates: list[Candidate], standard_errors: float) -> Candidate:
    """The best candidate, or the simplest one where there are too few held-out prompts to tell."""
    number = sum(len(rows) for rows in candidates[0].logits.values())
    if number >= HELD_OUT_LEAST or len(candidates) == 1:
        return best_of(candidates, standard_errors)
    warnings.warn(
        f"Only {number} held-out prompts, fewer than {HELD_OUT_LEAST}: too few to choose on. Taking the simplest.",
        stacklevel=3,
    )
    return max(candidates, key=lambda candidate: candidate.simplicity)


def collect(model: IR3DEModel, spool: Spool) -> dict[str, DomainStatistics]:
    """The statistics of each domain over all of its prompts, in the router's feature space."""
    empty = model.collector()
    statistics = {}
    for domain in progress(spool.domains, "Summing", "domains"):
        collector = empty.of_another()
        for prompts in spool.parts(domain):
            collector.add(prompts)
        statistics[domain] = collector.statistics
    return statistics


def check_domains(spool: Spool) -> None:
    """Raises ValueError unless there are two domains or more, of two rows or more, whose names can name experts."""
    if len(spool.domains) < 2:
        raise ValueError(f"A router chooses between at least two domains; the data have {spool.domains or 'no rows'}.")
    check_names(spool.domains)
    single = [domain for domain in spool.domains if len(spool.lengths(domain)) < 2]
    if single:
        raise ValueError(
            f"Domain {single[0]!r} has a single row: at least two are needed, one of them held out."
            f"{maybe_swapped(len(single), len(spool.domains))}"
        )


def _candidates(config: IR3DEConfig, embeddings: torch.Tensor, spool: Spool, options: FitOptions) -> list[Candidate]:
    """Every combination of variant and feature map that the options leave open."""
    grids = Grids(
        num_votes=_given(options.num_votes),
        lambdas=_given(options.regularization),
        token_noises=_given(options.token_noise),
        lexical_weights=_given(options.lexical_weight),
    )
    half = config.num_features // 4 * 2  # an even number, and an eighth of the work
    candidates: list[Candidate] = []
    plan = _plan(options, len(spool.domains), config.num_features)
    if plan is MANY:
        config.lexical_smoothing = MANY_SMOOTHING
        solves = (False, True) if options.discriminant is None else (options.discriminant,)
        grids = grids._replace(discriminants=solves, lexical_shares=MANY_SHARES)
    for feature_map, variants in plan.items():
        config.feature_map = feature_map
        candidates += search(config, embeddings, splits(spool), variants, half, grids=grids)
    return candidates


def _given(value: Number | None) -> list[Number] | None:
    """What is tried instead of the default values: a value that is given, alone."""
    return None if value is None else [value]


def _plan(options: FitOptions, domains: int, num_features: int) -> dict[str, list[str]]:
    """The variants that are tried on each feature map."""
    if options.variant != AUTO:
        maps = list(FEATURE_MAPS) if options.feature_map == AUTO else [options.feature_map or "identity"]
        return {name: [options.variant] for name in maps}
    if options.feature_map is not None and options.feature_map != AUTO:
        return {options.feature_map: list(VARIANTS)}
    if domains * 8 * num_features**2 > RFF_MOST_BYTES:
        return MANY
    return {
        "identity": [variant for variant in VARIANTS if variant != "prompt"],
        "unit": ["prompt"],
        "rff": ["prompt"],
    }


def _with_all_features(config: IR3DEConfig, embeddings: torch.Tensor, spool: Spool, best: Candidate) -> Candidate:
    """What was chosen with fewer random features, measured with all."""
    config.feature_map = "rff"
    return search(config, embeddings, splits(spool), [best.config["variant"]], grids=best.grids)[0]


def evaluation(best: Candidate, error: float) -> dict[str, Any]:
    """What config and card say of the choice."""
    domains = {name: {"recall": recall, "prompts": len(best.logits[name])} for name, recall in best.recalls.items()}
    routes = {name: rows.argmax(dim=1).bincount(minlength=len(domains)).tolist() for name, rows in best.logits.items()}
    return {
        "macro_accuracy": best.macro_accuracy,
        "standard_error": best.standard_error,
        "calibration_error": error,
        "prompts": sum(domain["prompts"] for domain in domains.values()),
        "domains": domains,
        "confusion": {name: dict(zip(domains, numbers, strict=True)) for name, numbers in routes.items()},
    }


def _match_experts(config: IR3DEConfig, domains: list[str], specs: Sequence[ExpertSpec]) -> None:
    """Sets the experts and domains, or checks that the experts that are given are the domains of the data."""
    if specs:
        config.set_experts(specs, domains)
    elif not config.experts:
        config.set_experts([{"name": domain} for domain in domains])
    elif set(config.expert_names) != set(domains):
        raise _mismatch(domains, config.expert_names)


def check_before(
    config: IR3DEConfig, specs: Sequence[ExpertSpec], options: FitOptions, domains: Collection[str]
) -> None:
    """Checks what can be told of a fit before its rows are tokenized, which may show that a domain has none.

    Args:
        config ([`IR3DEConfig`]): of the router.
        specs (`Sequence[ExpertSpec]`): of its experts; empty where each domain has one that only routes.
        options ([`FitOptions`]): how it is fitted.
        domains (`Collection[str]`): of the rows.

    Raises:
        ValueError: experts and domains are not of the same names, or the fallback is no expert.
    """
    options.check_fallback([spec["name"] for spec in specs] or sorted(domains))
    if config.experts and set(config.expert_names) != set(domains):
        raise _mismatch(sorted(domains), config.expert_names)


def _mismatch(domains: list[str], experts: list[str]) -> ValueError:
    lacking = [name for name in domains if name not in experts]
    strange = [name for name in experts if name not in domains]
    found = [f"No expert is named after {lacking}."] if lacking else []
    found += [f"No domain is named as the experts {strange}; the data have {domains}."] if strange else []
    return ValueError(
        f"{' '.join(found)} Each domain needs one expert of its name, or experts that say in their specs which"
        " `domains` they serve. A spec with a `name` alone only routes, and may be given a model later; --where leaves"
        " rows out."
    )
