"""How often a router sends labelled prompts to the right expert."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypedDict

import numpy as np
from tqdm.auto import tqdm

from ir3de.choices_ir3de import VARIANTS
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.policy_ir3de import Record
from ir3de.scripts.data.rows import Row
from ir3de.scripts.metrics.measures import Array, auroc, mean_recall
from ir3de.scripts.reports.words import LONG, ROOM, Labels, table, width_of


class DomainFigures(TypedDict):
    """A domain's `recall`, 0 to 1, and its number of `prompts`."""

    recall: float
    prompts: int


class OutsideFigures(TypedDict):
    """
    How well prompts of no domain are told from others, by familiarity, or by the largest probability where the router
    does not tell it.

    Args:
        prompts (`int`): from outside.
        auroc (`float`): how often a prompt of the domains has the larger value of two, 0 to 1.
        by (`str`): `"familiarity"` or `"score"`.
        noticed (`float`): the share of them that the router has the fallback answer, or nobody, as it is.
        lost (`float`): the share of the domains' prompts, likewise.
    """

    prompts: int
    auroc: float
    by: str
    noticed: float
    lost: float


class _RoutingFigures(TypedDict):
    """What is always measured."""

    macro_accuracy: float
    micro_accuracy: float
    prompts: int
    domains: dict[str, DomainFigures]
    confusion: dict[str, dict[str, int]]


class RoutingFigures(_RoutingFigures, total=False):
    """
    How often prompts go where they belong.

    Args:
        macro_accuracy (`float`): mean recall of the domains, 0 to 1.
        micro_accuracy (`float`): how many are routed right, 0 to 1.
        prompts (`int`): how many there are.
        domains (`dict[str, DomainFigures]`): by name.
        confusion (`dict[str, dict[str, int]]`): by domain and then by expert, a number of prompts.
        with_second_opinion (`float`): the macro accuracy with the router's second opinion, where it has one.
        outside ([`OutsideFigures`]): where prompts of no domain were given.
    """

    with_second_opinion: float
    outside: OutsideFigures


def routing_accuracy(router: IR3DERoutingPipeline, rows: Iterable[Row], **choice: Any) -> RoutingFigures:
    """Routes labelled rows, each to the best expert of its ranking, whatever the minimum score.

    Where domains and experts differ, or outcomes help to decide who answers, it is the domain that is recognised that
    counts, as right is then no property of an expert.

    Args:
        router ([`IR3DERoutingPipeline`]): to measure.
        rows (`Iterable[Row]`): labelled prompts.
        choice (*optional*): options of the call, such as `variant`.

    Raises:
        ValueError: there are no rows, or the router does not know a row's domain.
    """
    rows = list(rows)
    known = router.model.config.domain_names
    unknown = sorted({row.domain for row in rows} - set(known))
    if unknown or not rows:
        raise ValueError(
            f"The data have {len(rows)} rows, and domains that the router has not: {unknown}. It has {known}."
        )
    confusion: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(known, 0))
    asked = {"generate": False, "on_error": "raise", **choice}
    texts = tqdm((row.text for row in rows), total=len(rows), desc="Routing", disable=None, leave=False)
    for row, record in zip(rows, router(iter(texts), min_score=0, **asked), strict=True):
        confusion[row.domain][_recognised(record)] += 1
    domains: dict[str, DomainFigures] = {}
    for name, routes in sorted(confusion.items()):
        number = sum(routes.values())
        domains[name] = {"recall": routes[name] / number, "prompts": number}
    return {
        "macro_accuracy": mean_recall({name: domain["recall"] for name, domain in domains.items()}),
        "micro_accuracy": sum(confusion[name][name] for name in confusion) / len(rows),
        "prompts": len(rows),
        "domains": domains,
        "confusion": dict(sorted(confusion.items())),
    }


def _recognised(record: Record) -> str:
    """The likeliest domain, which has an expert of its own where the record tells of no domains."""
    return record["domains"][0]["domain"] if "domains" in record else record["ranking"][0]["expert"]


def second_accuracy(model: IR3DEModel, rows: Sequence[Row], **choice: Any) -> float:
    """Macro accuracy with the router's own second opinion, which is asked below its default bound."""
    router = IR3DERoutingPipeline(model, device="cpu", second_opinion=True)
    return routing_accuracy(router, rows, **choice)["macro_accuracy"]


def outside_figures(router: IR3DERoutingPipeline, rows: Sequence[Row], texts: Sequence[str]) -> OutsideFigures:
    """How well prompts of no domain are told from those of the domains.

    Args:
        router ([`IR3DERoutingPipeline`]): to measure.
        rows (`Sequence[Row]`): prompts of its domains.
        texts (`Sequence[str]`): prompts of none.
    """
    near = router([row.text for row in rows], generate=False, top_n=1)
    far = router(list(texts), generate=False, top_n=1)
    by = "familiarity" if all("familiarity" in record for record in chain(near, far)) else "score"
    inside = np.array([record[by] for record in near])
    outside = np.array([record[by] for record in far])
    return {
        "prompts": len(far),
        "auroc": auroc(inside, outside),
        "by": by,
        "noticed": _share_to_fallback(far),
        "lost": _share_to_fallback(near),
    }


def _share_to_fallback(records: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean(["fallback" in record for record in records]))


def describe(figures: RoutingFigures) -> str:
    """The figures as a table: a row a true domain, a column a domain that prompts were taken for."""
    names = list(next(iter(figures["confusion"].values())))
    labels = Labels.of(names, numbered=sum(width_of(name) + 2 for name in names) > ROOM - LONG)
    rows = []
    for name, routes in figures["confusion"].items():
        recall = f"{100 * figures['domains'][name]['recall']:.1f}"
        rows.append([labels.rows[names.index(name)], recall, *map(str, routes.values())])
    lines = ["Rows: the domain that prompts are of. Columns: how many were taken for each."]
    lines += [*table(["domain", "recall %", *labels.columns], rows), *labels.legend]
    macro, micro = 100 * figures["macro_accuracy"], 100 * figures["micro_accuracy"]
    lines.append(f"{figures['prompts']:,} prompts: macro accuracy {macro:.2f} %, micro {micro:.2f} %")
    if "with_second_opinion" in figures:
        lines.append(f"With the second opinion: macro accuracy {100 * figures['with_second_opinion']:.2f} %")
    if "outside" in figures:
        of = figures["outside"]
        lines.append(
            f"{of['prompts']:,} prompts from outside: AUROC {100 * of['auroc']:.1f} % by {of['by']}; as it is it"
            f" notices {100 * of['noticed']:.1f} % of them, and loses {100 * of['lost']:.1f} % of its domains' prompts"
        )
    return "\n".join(lines)


def accuracy_over_k(router: IR3DERoutingPipeline, rows: Sequence[Row], votes: Sequence[int]) -> dict[str, float]:
    """Macro accuracy of top-k with several k, and of the other variants: to look at, not to choose on.

    Args:
        router ([`IR3DERoutingPipeline`]): to measure.
        rows (`Sequence[Row]`): labelled prompts.
        votes (`Sequence[int]`): values of k.

    Returns:
        `dict[str, float]`: by k, written in digits, or by variant; 0 to 1.
    """
    ways: dict[str, Mapping[str, Any]] = {str(k): {"variant": "top-k", "num_votes": k} for k in votes}
    ways |= {variant: {"variant": variant} for variant in VARIANTS if variant != "top-k"}
    texts, domains = [row.text for row in rows], [row.domain for row in rows]
    names = router.model.config.expert_names
    accuracy = {}
    for way, choice in tqdm(ways.items(), desc="Accuracy over k", disable=None, leave=False):
        records = router(texts, generate=False, on_error="raise", top_n=1, **choice)
        routes = [record["ranking"][0]["expert"] for record in records]
        accuracy[way] = expected_accuracy(domains, names, one_hot(names, routes))
    return accuracy


def one_hot(experts: Sequence[str], routes: Sequence[str]) -> Array:
    """The probabilities, of shape `(prompts, experts)`, of routes that are certain."""
    return np.eye(len(experts))[[experts.index(route) for route in routes]]


def expected_accuracy(domains: Sequence[str], experts: Sequence[str], p: Array) -> float:
    """Macro accuracy where experts get prompts by chance.

    Args:
        domains (`Sequence[str]`): of each prompt.
        experts (`Sequence[str]`): the columns of `p`; each domain's own expert has the domain's name.
        p (`np.ndarray` of shape `(prompts, experts)`): with which probability each expert gets each prompt.

    Returns:
        `float`: mean over the domains of the probability of their own expert, 0 to 1.
    """
    own = p[np.arange(len(domains)), [experts.index(domain) for domain in domains]]
    of = np.array(domains)
    return mean_recall({domain: float(own[of == domain].mean()) for domain in np.unique(of)})
