"""The rows of the table: every way to choose an expert for a prompt, each a distribution over the experts."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from tqdm.auto import tqdm

from ir3de.experts_ir3de import describe_error
from ir3de.scripts.data.rows import Row
from ir3de.scripts.fitting.search import NUM_VOTES
from ir3de.scripts.metrics.accuracy import accuracy_over_k, expected_accuracy, one_hot
from ir3de.scripts.metrics.measures import Array
from ir3de.scripts.metrics.normalised import Losses, Perplexity, normalised
from ir3de.scripts.routers.base import Factory, Options
from ir3de.scripts.routers.ours import IR3DERouter

AVERAGE = "average-of-weights"
ONE_SEED = ("tfidf", "modem")  # the one has no seed, the other is too slow for several


class Seed(TypedDict):
    """Of one seed: macro `accuracy`, 0 to 1, and `normalised` performance in percent."""

    accuracy: float
    normalised: float


class TableRow(TypedDict, total=False):
    """
    What the table says of a way to choose the expert.

    Args:
        row (`str`): its name.
        error (`str`): why there is nothing else; without one there are the figures.
        accuracy (`float`): macro accuracy, 0 to 1.
        normalised (`float`): performance in percent; with its `interval` and `domains` as in [`Normalised`].
        seeds (`list[Seed]`): where there were several.
        choice (`str`): what was chosen on held-out prompts.
        seconds (`float`, *optional*): that it took.
        over_k (`dict[str, float]`): of top-k, the macro accuracy with each k.
    """

    row: str
    error: str
    accuracy: float
    normalised: float
    interval: list[float]
    domains: dict[str, Perplexity]
    seeds: list[Seed]
    choice: str
    seconds: float | None
    over_k: dict[str, float]


@dataclass
class Routes:
    """
    Where a router sends the test prompts.

    Args:
        routes (`list[list[str]]`): the expert of each prompt, a list a seed.
        choice (`str`): what was chosen on held-out training prompts.
        seconds (`float`): that fitting and routing took, all seeds together.
        over_k (`dict[str, float]`): of top-k, the macro accuracy with each k.
        error (`str`): why there are no routes.
    """

    routes: list[list[str]] = field(default_factory=list)
    choice: str = ""
    seconds: float = 0.0
    over_k: dict[str, float] = field(default_factory=dict)
    error: str = ""


def fixed_rows(losses: Losses, experts: Sequence[str]) -> dict[str, Array]:
    """The rows without a router: each expert for all prompts, the average of their weights, chance, hindsight and the
    own expert; no average where that failed, and no hindsight where an expert failed.

    Returns:
        `dict`: by name, probabilities of shape `(prompts, columns of losses)`.
    """
    one = np.eye(len(losses.experts))
    prompts = len(losses.domains)
    rows: dict[str, Array] = {}
    for name in experts:
        rows[f"only {name}"] = np.tile(one[losses.experts.index(name)], (prompts, 1))
    if AVERAGE in losses.experts:
        rows[AVERAGE] = np.tile(one[losses.experts.index(AVERAGE)], (prompts, 1))
    columns = [losses.experts.index(name) for name in experts]
    rows["random"] = np.tile(one[columns].mean(axis=0), (prompts, 1))
    if not np.isnan(losses.nats[:, columns]).any():
        rows["best in hindsight"] = one[np.array(columns)[losses.nats[:, columns].argmin(axis=1)]]
    rows["own expert"] = one[losses.own]
    return rows


def trained_rows(
    file: Path | None,
    routers: Mapping[str, Factory],
    options: Options,
    seeds: int,
    train: Sequence[Row],
    tests: Sequence[Row],
) -> dict[str, Routes]:
    """Fits routers to training prompts and routes the test prompts.

    Args:
        file (`Path`, *optional*): where routes are kept after every router; those of an earlier run are used.
        routers (`Mapping[str, Factory]`): by name, from [`ours`] and `BASELINES`.
        options ([`Options`]): of the baselines.
        seeds (`int`): of those whose routes depend on one.
        train (`Sequence[Row]`): to fit and to choose on.
        tests (`Sequence[Row]`): to route.

    Returns:
        `dict[str, Routes]`: by name; one that cannot be loaded or fails has an `error`.
    """
    key = hashlib.sha256(repr([options, seeds, list(train), list(tests)]).encode()).hexdigest()
    kept = json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}
    rows = {name: Routes(**row) for name, row in kept["rows"].items()} if kept.get("key") == key else {}
    with tqdm(routers.items(), desc="Fitting", unit=" routers", disable=None) as progress:
        for name, make in progress:
            progress.set_postfix_str(name)
            if name not in rows or rows[name].error:
                rows[name] = _fit(name, make, options, seeds, train, tests)
                tqdm.write(f"{name}: {rows[name].error or f'{rows[name].seconds:.0f} s'}", file=sys.stderr)
                if file:
                    kept = {"key": key, "rows": {name: asdict(row) for name, row in rows.items()}}
                    file.write_text(json.dumps(kept), encoding="utf-8")
    return {name: rows[name] for name in routers}


def _fit(name: str, make: Factory, options: Options, seeds: int, train: Sequence[Row], tests: Sequence[Row]) -> Routes:
    """Fits a router, once for each seed that its routes depend on, and routes the test prompts."""
    row, started = Routes(), time.perf_counter()
    deterministic = name.startswith("ir3de")
    try:
        for seed in range(1 if deterministic or name in ONE_SEED else seeds):
            router = make(replace(options, seed=seed))
            router.fit([row.text for row in train], [row.domain for row in train])
            best = router.scores([row.text for row in tests], cached=True).argmax(axis=1)
            row.routes.append([router.domains[i] for i in best])
            row.choice = router.choice
        if name == "ir3de-top-k" and isinstance(router, IR3DERouter):
            row.over_k = accuracy_over_k(router.pipeline, tests, NUM_VOTES)
    except Exception as error:  # the others go on
        return Routes(error=describe_error(error))
    row.seconds = time.perf_counter() - started
    return row


def describe_row(
    name: str, losses: Losses, p: Array, choice: str | None = None, seconds: float | None = None
) -> TableRow:
    """What the table says of a row.

    Args:
        name (`str`): of the row.
        losses ([`Losses`]): of prompts and experts.
        p (`np.ndarray` of shape `(prompts, experts)`): with which probability each expert reads a prompt.
        choice (`str`, *optional*): what was chosen, or else what to say of it.
        seconds (`float`, *optional*): that it took.
    """
    figures = normalised(losses, p)
    row: TableRow = {
        "row": name,
        "accuracy": expected_accuracy(losses.domains, losses.experts, p),
        "normalised": figures["normalised"],
        "interval": figures["interval"],
        "domains": figures["domains"],
        "seconds": seconds,
    }
    if choice is not None:
        row["choice"] = choice
    return row


def describe_routes(name: str, losses: Losses, routes: Routes) -> TableRow:
    """What the table says of a router: its figures are of the mean over its seeds, each as likely.

    Args:
        name (`str`): of the row.
        losses ([`Losses`]): of prompts and experts.
        routes ([`Routes`]): of the router, or why there are none.
    """
    if routes.error:
        return {"row": name, "error": routes.error}
    seeds = [one_hot(losses.experts, seed) for seed in routes.routes]
    row = describe_row(name, losses, np.mean(seeds, axis=0), routes.choice, routes.seconds)
    row["over_k"] = routes.over_k
    if len(seeds) > 1:
        row["seeds"] = [
            {
                "accuracy": expected_accuracy(losses.domains, losses.experts, p),
                "normalised": normalised(losses, p)["normalised"],
            }
            for p in seeds
        ]
    return row
