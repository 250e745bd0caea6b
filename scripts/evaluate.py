"""`ir3de evaluate`: how often a router sends labelled prompts to the right expert."""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm.auto import tqdm

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.data import Row, add_data_arguments, read_rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de evaluate`."""
    parser.add_argument("router", metavar="DIR", help="folder or Hub id of a router")
    add_data_arguments(parser)
    parser.add_argument("--variant", help="instead of the router's own")
    parser.add_argument("--num-votes", type=int, help="instead of the router's own")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Measures routing accuracy."""
    router = IR3DERoutingPipeline(IR3DEModel.from_pretrained(args.router), device="cpu")
    choice = {key: value for key in ("variant", "num_votes") if (value := getattr(args, key)) is not None}
    figures = routing_accuracy(router, read_rows(args), **choice)
    print(json.dumps(figures, indent=2) if args.json else describe(figures))
    return 0


def routing_accuracy(router: IR3DERoutingPipeline, rows: Iterable[Row], **choice: Any) -> dict[str, Any]:
    """Routes labelled rows.

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
    for row, record in zip(rows, router(iter(texts), generate=False, **choice), strict=True):
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


def main(arguments: list[str] | None = None) -> int:
    """Runs `ir3de evaluate`."""
    parser = argparse.ArgumentParser(prog="ir3de evaluate", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
