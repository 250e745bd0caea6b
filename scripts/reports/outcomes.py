"""Routers that learn from outcomes side by side: what they score, at which cost, from many outcomes and from few."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ir3de.card_ir3de import markdown_table
from ir3de.outcomes_ir3de import STRENGTH, expected
from ir3de.outlook_ir3de import Point
from ir3de.scripts.data.judged import Judged, JudgedData
from ir3de.scripts.fitting.discovery import discover
from ir3de.scripts.metrics.frontier import (
    area,
    chosen,
    cost_to_match,
    frontier,
    macro_mean,
    singles,
    standard_error,
)
from ir3de.scripts.metrics.measures import Array
from ir3de.scripts.reports.drawing import draw
from ir3de.scripts.routers.by_outcomes import (
    FOLDS,
    BestSingle,
    DomainsByOutcomes,
    Predictor,
    folds,
    score_of,
    sums_of,
)

OURS, SINGLE, KNOWN, ORACLE = "domains x outcomes", "best single expert", "best of the known source", "oracle a prompt"
STRENGTHS = (1, 3, 10, 30, 100)
FEW, SEEDS = (50, 200, 1000), 20
JOINING, JOINING_SEEDS = (25, 50, 100), 6
Results = dict[str, Any]
Makers = Mapping[str, Callable[[], Predictor]]


def compare_outcomes(data: JudgedData, ours: DomainsByOutcomes, others: Makers, few: Sequence[str]) -> Results:
    """Measures ours and others on a data set.

    Args:
        data ([`JudgedData`]): its training prompts are fitted and chosen on, its test prompts measured.
        ours ([`DomainsByOutcomes`]): not fitted yet.
        others (`Mapping`): makers of other routers by name.
        few (`Sequence[str]`): names of those that are also measured with few outcomes.
    """
    ours.fit(data.train)
    single = BestSingle().fit(data.train)
    p = ours.recogniser.scores(data.test.texts)
    found: dict[str, tuple[Array, Array]] = {SINGLE: single.expected(data.test.texts), OURS: ours.of_probabilities(p)}
    choices = {OURS: ours.choice}
    for name, make in others.items():
        predictor = make()
        predictor.fit(data.train)
        found[name], choices[name] = predictor.expected(data.test.texts), predictor.choice
    places = [ours.recogniser.domains.index(group) for group in data.test.groups]
    found[KNOWN] = ours.of_probabilities(np.eye(len(ours.recogniser.domains))[places])
    found[ORACLE] = data.test.scores, np.zeros_like(data.test.scores)
    results: Results = {
        "name": data.name,
        "prompts": {"train": len(data.train.texts), "test": len(data.test.texts)},
        "experts": len(data.experts),
        "domains": len(ours.recogniser.domains),
        "recognised": float(np.mean(p.argmax(axis=1) == places)),
        "routers": {name: _figures(*each, data.test, found[SINGLE][0]) for name, each in found.items()},
        "choices": choices,
        "strengths": {str(strength): _cross_validated(data.train, strength) for strength in STRENGTHS},
        "few": _few(data, ours, p, {name: others[name] for name in few}),
        "joining": _joining(data, ours, p),
        "claims": _claims(data, ours, p),
    }
    if data.train.has_costs and data.test.has_costs:
        results["costs"] = _costs(found, data)
    return results


def discovered(data: JudgedData, tokenizer: Any, embeddings: Any) -> list[tuple[int, float, float]]:
    """For the number of domains that is chosen where the prompts have no labels: that number, the mean score of the
    held-out training prompts, and the macro mean score on test.
    """
    labels, tried = discover(data.train, tokenizer, embeddings)
    number = len(set(labels))
    ours = DomainsByOutcomes(tokenizer, embeddings).fit(data.train, labels)
    best = min(tried, key=lambda each: (each.error, each.number))
    return [(number, best.score, score_of(ours.expected(data.test.texts)[0], data.test))]


def _figures(scores: Array, costs: Array, test: Judged, single: Array) -> Results:
    """What a router's choices score, and what they gain over the best single expert."""
    values = chosen(test.scores, scores.argmax(axis=1))
    gain = values - chosen(test.scores, single.argmax(axis=1))
    return {
        "score": macro_mean(values, test.groups),
        "standard_error": standard_error(values, test.groups),
        "gain": macro_mean(gain, test.groups),
        "gain_standard_error": standard_error(gain, test.groups),
    }


def _costs(found: Mapping[str, tuple[Array, Array]], data: JudgedData) -> Results:
    """Areas under the cost hull, and what it costs to match the best single expert."""
    test = data.test
    points = singles(test.scores, test.costs, test.groups)
    cheapest, dearest = min(point.cost for point in points), max(point.cost for point in points)
    best = points[int(found[SINGLE][0][0].argmax())]
    frontiers: dict[str, list[Point]] = {"single experts": points}
    for name, (scores, costs) in found.items():
        if name not in (SINGLE, KNOWN, ORACLE) and not np.isnan(costs).any():
            frontiers[name] = frontier(scores, costs, test.scores, test.costs, test.groups)
    return {
        "areas": {name: area(each, cheapest, dearest) for name, each in frontiers.items()},
        "matches": {name: cost_to_match(each, best.score) / best.cost for name, each in frontiers.items()},
        "frontiers": frontiers,
    }


def _cross_validated(train: Judged, strength: float) -> float:
    """Macro score on the training prompts, each chosen for by outcomes of the other folds, its domain known."""
    names = sorted(set(train.groups))
    fold, scores = folds(len(train.texts)), np.zeros_like(train.scores)
    for held in range(FOLDS):
        rest, away = train.take(np.flatnonzero(fold != held)), np.flatnonzero(fold == held)
        pairs = expected(
            sums_of(rest, rest.groups, names), np.zeros((len(names), scores.shape[1]), dtype=bool), strength
        )
        scores[away] = pairs.score[[names.index(train.groups[row]) for row in away]]
    return score_of(scores, train)


def _few(data: JudgedData, ours: DomainsByOutcomes, p: Array, others: Makers) -> Results:
    """Mean macro scores where each expert was judged on a few prompts of its own."""
    found: dict[str, dict[str, list[float]]] = {}
    for number in FEW:
        if number > len(data.train.texts):
            continue
        column = found[str(number)] = {name: [] for name in (SINGLE, OURS, *others)}
        for seed in range(SEEDS):
            rows = data.train.seen(_own_prompts(data.train.scores.shape, number, seed))
            learnt = ours.learnt(rows)
            column[OURS].append(score_of(learnt.of_probabilities(p)[0], data.test))
            column[SINGLE].append(score_of(_most_successful(rows, len(data.test.texts)), data.test))
            for name, make in others.items():
                if seed < 5:  # they take longer, and differ by more than their error
                    predictor = make()
                    predictor.fit(rows)
                    column[name].append(score_of(predictor.expected(data.test.texts)[0], data.test))
    return {number: {name: float(np.mean(v)) for name, v in column.items() if v} for number, column in found.items()}


def _most_successful(rows: Judged, number: int) -> Array:
    """Each expert's mean over the prompts that it was judged on, for so many prompts."""
    return np.tile(np.nanmean(rows.scores, axis=0), (number, 1))


def _own_prompts(shape: tuple[int, ...], number: int, seed: int) -> Array:
    """True for a few random prompts of each expert."""
    draw_rows = np.random.default_rng(seed)
    mask = np.zeros(shape, dtype=bool)
    for expert in range(shape[1]):
        mask[draw_rows.permutation(shape[0])[:number], expert] = True
    return mask


def _each_absent(data: JudgedData, ours: DomainsByOutcomes, p: Array) -> Iterator[tuple[int, float]]:
    """Each expert, and the macro score of going without it."""
    for expert in range(len(data.experts)):
        mask = np.ones_like(data.train.scores, dtype=bool)
        mask[:, expert] = False
        scores = ours.learnt(data.train.seen(mask)).of_probabilities(p)[0]
        scores[:, expert] = -1
        yield expert, score_of(scores, data.test)


def _joining(data: JudgedData, ours: DomainsByOutcomes, p: Array) -> Results:
    """What an expert that joins with few outcomes gains over going without it: mean over experts and samples."""
    gains: dict[str, list[float]] = {str(number): [] for number in JOINING}
    for expert, without in _each_absent(data, ours, p):
        for number in JOINING:
            for seed in range(JOINING_SEEDS):
                mask = np.ones_like(data.train.scores, dtype=bool)
                mask[:, expert] = False
                rows = np.random.default_rng(seed + 100 * expert).permutation(len(mask))[:number]
                mask[rows, expert] = True
                learnt = ours.learnt(data.train.seen(mask))
                gains[str(number)].append(score_of(learnt.of_probabilities(p)[0], data.test) - without)
    return {number: {"gain": float(np.mean(v)), "worst": float(np.min(v))} for number, v in gains.items()}


def _claims(data: JudgedData, ours: DomainsByOutcomes, p: Array) -> Results:
    """What an expert without outcomes gains where its spec claims a domain, over going without it.

    Where it is the best there, as someone who knows it would say; and where the domain is any.
    """
    names = ours.recogniser.domains
    groups = np.asarray(data.train.groups)
    means = np.array([data.train.scores[groups == name].mean(axis=0) for name in names])
    lead = means - np.sort(means, axis=1)[:, -1:]
    gains: dict[str, list[float]] = {"its best domain": [], "any domain": []}
    for expert, without in _each_absent(data, ours, p):
        mask = np.ones_like(data.train.scores, dtype=bool)
        mask[:, expert] = False
        sums = sums_of(data.train.seen(mask), data.train.groups, names)
        for domain in range(len(names)):
            serves = np.zeros((len(names), len(data.experts)), dtype=bool)
            serves[domain, expert] = True
            gain = score_of(p @ expected(sums, serves).score, data.test) - without
            gains["any domain"].append(gain)
            if domain == int(lead[:, expert].argmax()):
                gains["its best domain"].append(gain)
    return {name: float(np.mean(values)) for name, values in gains.items()}


# What is written.


def write_outcomes_report(results: Sequence[Results], folder: Path) -> str:
    """Writes `outcomes.md`, `outcomes.json` and the plots; returns the table of scores."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "outcomes.json").write_text(json.dumps(list(results), indent=1), encoding="utf-8")
    plots = draw("outcomes_plots", {"data": results}, folder)
    scores = _score_table(results)
    sections = [
        ("Macro mean score on test, ± its standard error (gain over the best single expert ± its own)", scores),
        ("Normalised area under the cost hull, and the cost of matching the best single expert", _cost_table(results)),
        ("Few outcomes: macro mean score, each expert judged on prompts of its own", _few_table(results)),
        ("An expert that joins: gain over going without it, points (worst sample)", _joining_table(results)),
        ("An expert without outcomes that claims a domain: gain over going without it, points", _claims_table(results)),
        ("Strength of the prior: macro mean score on the training prompts, cross-validated", _strength_table(results)),
        ("Domains discovered", _discovery_table(results)),
    ]
    text = "\n\n".join(["# Routers that learn from outcomes", *(f"![]({path})" for path in plots)])
    text += "".join(f"\n\n## {title}\n\n{table}" for title, table in sections if table)
    (folder / "outcomes.md").write_text(text + "\n", encoding="utf-8")
    return f"{scores}\n\nTables, plots and figures are in {folder}."


def _score_table(results: Sequence[Results]) -> str:
    def cell(figures: Results | None) -> str:
        """Score and gain of a router on a data set."""
        if figures is None:
            return ""
        score = f"{100 * figures['score']:.2f} ± {100 * figures['standard_error']:.2f}"
        return f"{score} ({100 * figures['gain']:+.2f} ± {100 * figures['gain_standard_error']:.2f})"

    names = dict.fromkeys(name for data in results for name in data["routers"])
    rows = [[name, *(cell(data["routers"].get(name)) for data in results)] for name in names]
    return markdown_table(["", *(data["name"] for data in results)], rows, len(results))


def _cost_table(results: Sequence[Results]) -> str:
    priced = [data for data in results if "costs" in data]
    names = dict.fromkeys(name for data in priced for name in data["costs"]["areas"])
    rows = []
    for name in names:
        cells = []
        for data in priced:
            share = data["costs"]["matches"][name]
            cells += [f"{data['costs']['areas'][name]:.4f}", "never" if np.isnan(share) else f"{share:.3f}"]
        rows.append([name, *cells])
    heads = [f"{data['name']}, {what}" for data in priced for what in ("area", "share of its cost")]
    return markdown_table(["", *heads], rows, len(heads))


def _few_table(results: Sequence[Results]) -> str:
    names = dict.fromkeys(name for data in results for column in data["few"].values() for name in column)
    columns = [(data, number) for data in results for number in data["few"]]
    rows = [[name, *(_percent(data["few"][number].get(name)) for data, number in columns)] for name in names]
    return markdown_table(["", *(f"{data['name']}, {number}" for data, number in columns)], rows, len(columns))


def _joining_table(results: Sequence[Results]) -> str:
    def cell(gain: Mapping[str, float]) -> str:
        """Mean and worst."""
        return f"{100 * gain['gain']:+.2f} ({100 * gain['worst']:+.2f})"

    rows = [[number, *(cell(data["joining"][number]) for data in results)] for number in map(str, JOINING)]
    return markdown_table(["outcomes", *(data["name"] for data in results)], rows, len(results))


def _claims_table(results: Sequence[Results]) -> str:
    rows = [[name, *(f"{100 * data['claims'][name]:+.2f}" for data in results)] for name in results[0]["claims"]]
    return markdown_table(["claims", *(data["name"] for data in results)], rows, len(results))


def _strength_table(results: Sequence[Results]) -> str:
    rows = [
        [f"{strength}{' (taken)' if strength == STRENGTH else ''}"]
        + [_percent(data["strengths"][str(strength)]) for data in results]
        for strength in STRENGTHS
    ]
    return markdown_table(["strength", *(data["name"] for data in results)], rows, len(results))


def _discovery_table(results: Sequence[Results]) -> str:
    found = [(data["name"], *row) for data in results for row in data.get("discovered", ())]
    rows = [[name, str(number), _percent(train), _percent(test)] for name, number, train, test in found]
    return markdown_table(["data", "domains", "held-out training prompts", "test"], rows, 3)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
