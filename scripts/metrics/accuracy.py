"""How often a router sends labelled prompts to the right expert."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ir3de.configuration_ir3de import VARIANTS
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.data.rows import Row
from ir3de.scripts.fitting.search import NUM_VOTES


def routing_accuracy(router: IR3DERoutingPipeline, rows: Iterable[Row], **choice: Any) -> dict[str, Any]:
    """Routes labelled rows, each to the best expert of its ranking, whatever the minimum score.

    Returns:
        `dict`: `macro_accuracy` (mean recall of the domains) and `micro_accuracy`, 0 to 1; `prompts`; `domains`, each
        with its `recall` and number of `prompts`; and `confusion`, by domain and then by expert a number of prompts.

    Raises:
        ValueError: there are no rows, or a row's domain has no expert.
    """
    rows = list(rows)
    experts = router.model.config.expert_names
    unknown = sorted({row.domain for row in rows} - set(experts))
    if unknown or not rows:
        raise ValueError(
            f"The data have {len(rows)} rows, and domains without an expert: {unknown}. Experts: {experts}."
        )
    confusion: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(experts, 0))
    texts = tqdm((row.text for row in rows), total=len(rows), desc="Routing", disable=None, leave=False)
    for row, record in zip(rows, router(iter(texts), generate=False, min_score=0, **choice), strict=True):
        confusion[row.domain][record["expert"]] += 1
    domains = {
        name: {"recall": routes[name] / sum(routes.values()), "prompts": sum(routes.values())}
        for name, routes in sorted(confusion.items())
    }
    return {
        "macro_accuracy": sum(domain["recall"] for domain in domains.values()) / len(domains),
        "micro_accuracy": sum(confusion[name][name] for name in confusion) / len(rows),
        "prompts": len(rows),
        "domains": domains,
        "confusion": dict(sorted(confusion.items())),
    }


def describe(figures: Mapping[str, Any]) -> str:
    """The figures as a table: a row a domain, a column an expert."""
    experts = list(next(iter(figures["confusion"].values())))
    width = max(map(len, experts)) + 2
    lines = ["".join(f"{name:>{width}}" for name in ("domain", "recall %", *experts))]
    for name, routes in figures["confusion"].items():
        recall = f"{100 * figures['domains'][name]['recall']:.1f}"
        lines.append("".join(f"{cell!s:>{width}}" for cell in (name, recall, *routes.values())))
    macro, micro = 100 * figures["macro_accuracy"], 100 * figures["micro_accuracy"]
    return "\n".join([*lines, f"{figures['prompts']:,} prompts: macro accuracy {macro:.2f} %, micro {micro:.2f} %"])


def accuracy_over_k(router: IR3DERoutingPipeline, rows: Sequence[Row]) -> dict[str, float]:
    """Macro accuracy of top-k with each k of the paper's grid, and of the other variants: to look at, not to choose on.

    Returns:
        `dict[str, float]`: by k, written in digits, or by variant; 0 to 1.
    """
    texts, domains = [row.text for row in rows], [row.domain for row in rows]
    ways = {str(k): {"variant": "top-k", "num_votes": k} for k in NUM_VOTES}
    ways |= {variant: {"variant": variant} for variant in VARIANTS if variant != "top-k"}
    names = router.model.config.expert_names
    accuracy = {}
    for way, choice in tqdm(ways.items(), desc="Accuracy over k", disable=None, leave=False):
        routes = [record["ranking"][0]["expert"] for record in router(texts, generate=False, top_n=1, **choice)]
        accuracy[way] = expected_accuracy(domains, names, one_hot(names, routes))
    return accuracy


def one_hot(experts: Sequence[str], routes: Sequence[str]) -> Any:
    """The probabilities, of shape `(prompts, experts)`, of routes that are certain."""
    return np.eye(len(experts))[[experts.index(route) for route in routes]]


def expected_accuracy(domains: Sequence[str], experts: Sequence[str], p: Any) -> float:
    """Macro accuracy where expert e gets a prompt with probability `p[prompt, e]`: mean over the domains, 0 to 1."""
    own = p[np.arange(len(domains)), [experts.index(domain) for domain in domains]]
    of = np.array(domains)
    return float(np.mean([own[of == domain].mean() for domain in np.unique(of)]))
