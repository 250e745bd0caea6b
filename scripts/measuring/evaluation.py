"""An evaluation: how often a router finds the right expert, and how close that comes to asking the right one."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ir3de.card_ir3de import CARD_NAME, state
from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.experts_ir3de import describe_error
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.outcome_rows_ir3de import read_outcomes
from ir3de.outcomes_ir3de import ONE, Ledger
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.data.duplicates import overlap
from ir3de.scripts.data.experts import read_experts
from ir3de.scripts.data.outside import check_labels
from ir3de.scripts.data.rows import Row, RowSource, read_prompts, read_rows
from ir3de.scripts.data.selection import Selection, of_experts, to_score
from ir3de.scripts.fitting.search import NUM_VOTES
from ir3de.scripts.metrics.accuracy import (
    RoutingFigures,
    accuracy_over_k,
    one_hot,
    outside_figures,
    routing_accuracy,
    second_accuracy,
)
from ir3de.scripts.metrics.normalised import Losses
from ir3de.scripts.metrics.perplexity import score_experts
from ir3de.scripts.reports.evaluation import Results, Settings, write_card, write_report
from ir3de.scripts.reports.machine import describe_machine, versions
from ir3de.scripts.reports.rows import AVERAGE, TableRow, describe_routes, describe_row, fixed_rows, trained_rows
from ir3de.scripts.routers.average import average_experts
from ir3de.scripts.routers.base import Factory, Options, choose_routers
from ir3de.scripts.routers.baselines import BASELINES
from ir3de.scripts.routers.ours import ours
from ir3de.specs_ir3de import ExpertSpec

ROUTER, WITH_OUTCOMES = "this router", "with outcomes"


@dataclass(frozen=True)
class Reading:
    """
    How experts read the data.

    Args:
        experts (`str`): file with a list of experts, instead of the router's own; or empty.
        prompts (`int`): a domain.
        max_tokens (`int`): of a prompt.
    """

    experts: str
    prompts: int
    max_tokens: int


@dataclass(frozen=True)
class Training:
    """
    How other routers are fitted.

    Args:
        source ([`RowSource`]): the training data.
        routers (`tuple[str, ...]`): names of the routers.
        options ([`Options`]): of the routers.
        seeds (`int`): of those whose routes depend on one.
    """

    source: RowSource
    routers: tuple[str, ...]
    options: Options
    seeds: int


@dataclass(frozen=True)
class Evaluation:
    """
    What is evaluated.

    Args:
        router (`str`): folder or Hub id.
        source ([`RowSource`]): the data.
        variant (`str`, *optional*): instead of the router's own.
        num_votes (`int`, *optional*): instead of the router's own.
        output (`Path`, *optional*): folder for the results; without one only the routing accuracy is printed.
        reading ([`Reading`], *optional*): where experts read the data.
        training ([`Training`], *optional*): where other routers are fitted.
        card (`bool`): whether the router's card gets the figures.
        quick (`bool`): whether the sizes are those of `QUICK`.
        device (`str`): of the experts.
        outside ([`RowSource`], *optional*): prompts of none of the domains.
        outcomes (`str`, *optional*): file of outcomes, for a row of the router with these.
    """

    router: str
    source: RowSource
    variant: str | None
    num_votes: int | None
    output: Path | None
    reading: Reading | None
    training: Training | None
    card: bool
    quick: bool
    device: str
    outside: RowSource | None = None
    outcomes: str | None = None

    def check(self) -> None:
        """Raises ValueError where the options do not go together."""
        if self.card and self.quick:
            raise ValueError("--quick is a trial, and --card writes what is measured for good: leave one of them out.")
        if self.output is None and (self.reading or self.training or self.card or self.outcomes):
            raise ValueError(
                "--experts, --train, --outcomes and --card need --output DIR, where the results and what is kept go."
            )
        if not self.card:
            return
        if self.variant or self.num_votes is not None or (self.reading and self.reading.experts):
            raise ValueError(
                "--card writes what the router does as it is: leave out --variant, --num-votes and the list of"
                " --experts."
            )
        if not Path(self.router, CARD_NAME).is_file():
            raise ValueError(
                f"--card writes into the {CARD_NAME} of a router's folder, and {self.router} has none: download the"
                " router, evaluate the folder and upload it again (`hf upload`)."
            )

    @property
    def choice(self) -> dict[str, Any]:
        """The options of a call that are instead of the router's own."""
        given = {"variant": self.variant, "num_votes": self.num_votes}
        return {key: value for key, value in given.items() if value is not None}


class Prepared(NamedTuple):
    """
    What an evaluation works with: everything is read, and what can be refused has been.

    Args:
        model ([`IR3DEModel`]): the router.
        pipe ([`IR3DERoutingPipeline`]): the same, as it is used.
        specs (`list[dict]`): of the experts that read the data.
        selection ([`Selection`]): the rows to evaluate on.
        train ([`Selection`], *optional*): the rows to fit other routers to.
        routers (`dict[str, Factory]`): these others.
        outside (`list[str]`): prompts of none of the domains.
        notes (`list[str]`): what a person should know of the data.
        started (`float`): when it began, in seconds of a monotonic clock.
        outcomes ([`Ledger`], *optional*): to add for a row of its own.
    """

    model: IR3DEModel
    pipe: IR3DERoutingPipeline
    specs: list[ExpertSpec]
    selection: Selection
    train: Selection | None
    routers: dict[str, Factory]
    outside: list[str]
    notes: list[str]
    started: float
    outcomes: Ledger | None


def prepare(asked: Evaluation) -> Prepared:
    """Loads the router and reads the data.

    Raises:
        ValueError: the options do not go together, with each other or with the router.
        ImportError: another router needs a package that is not installed.
    """
    asked.check()
    started = time.monotonic()
    model = IR3DEModel.from_pretrained(asked.router)
    pipe = IR3DERoutingPipeline(model, device="cpu")
    specs = _specs(asked, model.config)
    routers = _routers(asked.training, model) if asked.training else {}
    selection, train, notes = _select(asked, model)
    outside = _outside(asked.outside, model) if asked.outside else []
    outcomes = None
    if asked.outcomes:  # what is malformed shows before anything is read
        outcomes = model.add_outcomes(asked.outcomes)
        model.remove_outcomes(outcomes)
        judged = [Row(these[0].text, "") for these in read_outcomes(asked.outcomes)]
        notes += [f"Outcomes: {note}" for note in overlap(judged, selection.rows)]
    return Prepared(model, pipe, specs, selection, train, routers, outside, notes, started, outcomes)


def _outside(source: RowSource, model: IR3DEModel) -> list[str]:
    """Prompts of none of a router's domains."""
    rows = list(read_prompts(source))
    check_labels(rows, model.config.domain_names)
    return [row.text for row in rows]


def measure_routing(asked: Evaluation, prepared: Prepared) -> RoutingFigures:
    """How often the router finds the right expert."""
    model, rows = prepared.model, prepared.selection.rows
    routing = routing_accuracy(prepared.pipe, rows, **asked.choice)
    if model.second_opinion is not None:
        try:
            routing["with_second_opinion"] = second_accuracy(model, rows, **asked.choice)
        except (ImportError, OSError) as error:
            print(f"The second opinion is not measured: {error}", file=sys.stderr)
    if prepared.outside:
        routing["outside"] = outside_figures(prepared.pipe, rows, prepared.outside)
    return routing


def measure_costs(asked: Evaluation, prepared: Prepared, routing: RoutingFigures, output: Path) -> Results:
    """What the choice of an expert costs, by every way to choose one, with what was measured of routing.

    Args:
        asked ([`Evaluation`]): what is evaluated.
        prepared ([`Prepared`]): what it works with.
        routing ([`RoutingFigures`]): of [`measure_routing`].
        output (`Path`): folder for what is kept.
    """
    model, selection, train = prepared.model, prepared.selection, prepared.train
    results: Results = {
        "settings": _settings(asked, model.config, train),
        "notes": prepared.notes,
        "routing": routing,
        "failures": {},
        "over_k": accuracy_over_k(prepared.pipe, selection.rows, NUM_VOTES),
        "rows": [],
        "seconds": 0.0,
    }
    output.mkdir(parents=True, exist_ok=True)
    losses = _losses(asked, output, prepared.specs, selection, results["failures"])
    if asked.reading:
        results["rows"] += _fixed_rows(losses, model.config.expert_names, results["failures"])
    if asked.training and train:
        trained = _trained_rows(asked.training, output, prepared.routers, losses, train, selection)
        results["rows"] += trained
        results["over_k"] = _over_k(trained) or results["over_k"]
    results["rows"].append(_own_row(ROUTER, asked, prepared.pipe, losses, selection, results["settings"]["variant"]))
    if (added := prepared.outcomes) is not None:
        model.add_outcomes(added)
        results["rows"].append(_own_row(WITH_OUTCOMES, asked, prepared.pipe, losses, selection, _told(added)))
        model.remove_outcomes(added)
    results["seconds"] = time.monotonic() - prepared.started
    return results


def write_results(asked: Evaluation, prepared: Prepared, results: Results, output: Path) -> str:
    """Writes the report, and into the router's card where that is asked for; returns the table."""
    table = write_report(results, output)
    if asked.card:
        write_card(Path(asked.router), results, state(prepared.model.config, prepared.model.statistics))
    return table


def _specs(asked: Evaluation, config: IR3DEConfig) -> list[ExpertSpec]:
    """The experts that read the data: the router's own, or those of a list, which must have the same names."""
    if asked.reading is None or not asked.reading.experts:
        return list(config.experts or [])
    listed = IR3DEConfig(experts=read_experts(asked.reading.experts))
    if listed.expert_names != config.expert_names:
        raise ValueError(
            f"{asked.reading.experts} lists {listed.expert_names}, and the router sends prompts to"
            f" {config.expert_names}: list an expert for each of these names."
        )
    return list(listed.experts or [])


def _select(asked: Evaluation, model: IR3DEModel) -> tuple[Selection, Selection | None, list[str]]:
    """The rows to evaluate on, those to fit other routers to, and what is left out of both."""
    names = model.config.expert_names
    selection = of_experts(read_rows(asked.source), names)
    if asked.reading:
        selection = to_score(selection, model.tokenizer, asked.reading.prompts, asked.reading.max_tokens)
    notes = selection.notes()
    if asked.training is None:
        return selection, None, notes
    train = of_experts(read_rows(asked.training.source), names, "training data")
    of_train = train.notes("the routers that are fitted to these never choose its expert")
    notes += [f"Training data: {note}" for note in of_train]
    return selection, train, [*notes, *overlap(train.rows, selection.rows)]


def _routers(training: Training, model: IR3DEModel) -> dict[str, Factory]:
    """The routers to fit; one whose encoder cannot be had is marked in its row, and the others go on."""
    known: dict[str, Factory] = {**ours(model.tokenizer, model.embed_tokens.weight.detach()), **BASELINES}
    chosen = choose_routers(known, training.routers)
    for make in chosen.values():
        with suppress(OSError):
            make(training.options)
    return chosen


def _losses(
    asked: Evaluation, output: Path, specs: Sequence[ExpertSpec], selection: Selection, failures: dict[str, str]
) -> Losses:
    """What the prompts cost the experts and the average of their weights; only the columns where no expert reads."""
    domains, texts = [row.domain for row in selection.rows], [row.text for row in selection.rows]
    if asked.reading is None:
        shape = len(texts), len(specs)
        return Losses(domains, [spec["name"] for spec in specs], np.full(shape, np.nan), np.zeros(shape, dtype=int))
    columns = list(specs)
    try:
        columns.append(average_experts(output / AVERAGE, specs, AVERAGE))
    except Exception as error:  # the experts themselves go on
        failures[AVERAGE] = describe_error(error)
    scores = score_experts(output / "scores", texts, columns, device=torch.device(asked.device))
    failures.update(scores.failures)
    return Losses(domains, [spec["name"] for spec in columns], scores.nats, scores.tokens, scores.seconds)


def _fixed_rows(losses: Losses, names: Sequence[str], failures: Mapping[str, str]) -> list[TableRow]:
    """The rows without a router; those of experts that failed say so."""
    rows = []
    for name, p in fixed_rows(losses, names).items():
        expert = name.removeprefix("only ")
        failed = f"failed: {failures[expert]}" if expert in failures else None
        rows.append(describe_row(name, losses, p, failed, losses.seconds.get(expert)))
    if AVERAGE not in losses.experts:
        rows.append({"row": AVERAGE, "error": failures[AVERAGE]})
    return rows


def _trained_rows(
    training: Training,
    output: Path,
    routers: Mapping[str, Factory],
    losses: Losses,
    train: Selection,
    selection: Selection,
) -> list[TableRow]:
    """The rows of routers that are fitted to training data."""
    file = output / "routes.json"
    trained = trained_rows(file, routers, training.options, training.seeds, train.rows, selection.rows)
    return [describe_routes(name, losses, routes) for name, routes in trained.items()]


def _over_k(trained: Sequence[TableRow]) -> dict[str, float]:
    """Accuracy over k of the top-k that was fitted here, and of the other variants, each with its own choice; empty
    where top-k was not fitted.
    """
    votes: dict[str, float] = {}
    others: dict[str, float] = {}
    for row in trained:
        over_k = row.get("over_k", {})
        votes |= {k: accuracy for k, accuracy in over_k.items() if k.isdigit()}
        if row["row"].startswith("ir3de-") and not over_k and not row.get("error"):
            others[row["row"].removeprefix("ir3de-")] = row["accuracy"]
    return votes | others if votes else {}


def _told(added: Ledger) -> str:
    """What was added, in words."""
    experts = sorted(added.contributions)
    number = added.sums(sorted(added.domains), experts)[..., 0].sum() / ONE
    return f"{number:,.0f} outcomes of {len(experts)} experts"


def _own_row(
    name: str, asked: Evaluation, router: IR3DERoutingPipeline, losses: Losses, selection: Selection, variant: str
) -> TableRow:
    """The row of the router itself, as it is now."""
    started = time.monotonic()
    texts = [row.text for row in selection.rows]
    records = router(texts, generate=False, on_error="raise", min_score=0, top_n=1, **asked.choice)
    routes = [record["expert"] for record in records]
    seconds = time.monotonic() - started
    return describe_row(name, losses, one_hot(losses.experts, routes), variant, seconds)


def _settings(asked: Evaluation, config: IR3DEConfig, train: Selection | None) -> Settings:
    """What the report says of the run."""
    variant = asked.variant or config.variant
    votes = f", k {asked.num_votes or config.num_votes}" if variant == "top-k" else ""
    settings: Settings = {
        "router": Path(asked.router).name if Path(asked.router).is_dir() else asked.router,
        "variant": f"{variant}, {config.feature_map}{votes}",
        "experts": config.expert_names,
        "data": asked.source.names,
        "where": list(asked.source.where),
    }
    if asked.reading:
        settings["prompts"], settings["max_tokens"] = asked.reading.prompts, asked.reading.max_tokens
    if asked.training and train:
        settings["train"] = list(asked.training.source.sources)
        settings["train_where"] = list(asked.training.source.where)
        settings["train_rows"] = len(train.rows)
        settings["seeds"] = asked.training.seeds
        settings["max_train_per_domain"] = asked.training.options.max_train or 0
        settings["modem_tokens"] = asked.training.options.max_tokens
    settings["quick"] = asked.quick
    settings["threads"] = torch.get_num_threads()
    settings["device"] = asked.device
    settings["machine"] = describe_machine()
    settings["packages"] = versions("torch", "transformers", "peft", "scikit-learn", "sentence-transformers")
    return settings
