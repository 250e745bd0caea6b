"""`ir3de evaluate`: how often a router finds the right expert, and how close that comes to asking the right one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ir3de.scripts.command import check_folder, command
from ir3de.scripts.data.rows import RowSource, add_data_arguments

if TYPE_CHECKING:  # these load torch, which nobody who asks for help waits for
    from ir3de.scripts.measuring.evaluation import Evaluation
    from ir3de.scripts.reports.evaluation import Results

ROUTERS = (
    *("knn-1", "knn-5", "knn-10", "modem", "bow-mlp", "tfidf"),
    *("ir3de-top-k", "ir3de-all", "ir3de-avg", "ir3de-prompt"),
)
LEAST = {"prompts": 1, "max_tokens": 2, "max_train_per_domain": 0, "seeds": 1}
USUAL = {"prompts": 60, "max_tokens": 128, "max_train_per_domain": 300, "seeds": 3}
QUICK = {"prompts": 10, "max_tokens": 64, "max_train_per_domain": 10, "seeds": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de evaluate`."""
    parser.add_argument("router", metavar="DIR", help="folder or Hub id of a router")
    add_data_arguments(parser)
    parser.add_argument("--variant", help="instead of the router's own")
    parser.add_argument("--num-votes", type=int, help="instead of the router's own")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--output", metavar="DIR", help="folder for results.md, results.json, figures and what is kept")
    parser.add_argument(
        "--card", action="store_true", help="write the figures into the router's card (a folder's); needs --output"
    )
    parser.add_argument(
        "--outside", action="append", metavar="DATA", help="prompts of none of the domains: how well are they noticed?"
    )
    experts = parser.add_argument_group("normalised performance")
    experts.add_argument(
        "--experts",
        nargs="?",
        const="",
        metavar="YAML",
        help="let the router's experts, or those of a list, read the data: perplexity by routing; needs --output",
    )
    experts.add_argument("--prompts", type=int, help="that experts read, a domain (default: 60)")
    experts.add_argument("--max-tokens", type=int, help="of a prompt, for modem too (default: 128)")
    experts.add_argument("--device", help="of the experts (default: a GPU if there is one)")
    experts.add_argument(
        "--outcomes", metavar="FILE", help="a further row: this router with these outcomes, of other text than the data"
    )
    others = parser.add_argument_group("other routers, fitted to training data")
    others.add_argument("--train", action="append", metavar="FILE_OR_ID", help="as --data; repeatable")
    others.add_argument("--train-where", action="append", default=[], metavar="KEY=VALUE", help="as --where")
    others.add_argument("--train-split", default="train", help="split of a Hub data set (default: train)")
    others.add_argument("--routers", metavar="NAMES", help=f"comma-separated; default: {','.join(ROUTERS)}")
    others.add_argument("--encoder", help="Hub id or folder of a sentence encoder; default: all-MiniLM-L6-v2")
    others.add_argument("--modem-encoder", help="that modem fine-tunes; default: DeBERTa-v3 on a GPU, else --encoder")
    others.add_argument(
        "--max-train-per-domain", type=int, help="training prompts an encoder reads (default: 300; 0: all)"
    )
    others.add_argument("--seeds", type=int, help="of routers whose routes depend on one (default: 3)")
    parser.add_argument(
        "--quick", action="store_true", help=", ".join(f"{key.replace('_', '-')} {n}" for key, n in QUICK.items())
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates; the exit code is 1 where an expert or another router failed."""
    import torch

    from ir3de.scripts.measuring.evaluation import Evaluation, Reading, Training
    from ir3de.scripts.routers.base import Options
    from ir3de.scripts.routers.encoders import default_encoder

    check_folder(args.output)
    if args.card:
        check_folder(args.router, "make a copy of the router")
    sizes = _sizes(args.quick, {name: getattr(args, name) for name in LEAST})
    source = RowSource.of(**vars(args))
    reading, training, outside = None, None, None
    if args.experts is not None:
        reading = Reading(args.experts, sizes["prompts"], sizes["max_tokens"])
    if args.train:
        data = replace(source, sources=tuple(args.train), where=tuple(args.train_where), split=args.train_split)
        options = Options(
            args.encoder or default_encoder(),
            args.modem_encoder,
            max_train=sizes["max_train_per_domain"] or None,
            max_tokens=sizes["max_tokens"],
        )
        names = tuple(args.routers.split(",")) if args.routers else ROUTERS
        training = Training(data, names, options, sizes["seeds"])
    if args.outside:
        outside = replace(source, sources=tuple(args.outside), where=())
    asked = Evaluation(
        router=args.router,
        source=source,
        variant=args.variant,
        num_votes=args.num_votes,
        output=Path(args.output) if args.output else None,
        reading=reading,
        training=training,
        card=args.card,
        quick=args.quick,
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        outside=outside,
        outcomes=args.outcomes,
    )
    return _evaluate(asked, args.json)


def _evaluate(asked: Evaluation, as_json: bool) -> int:
    """Measures, writes and prints."""
    from ir3de.scripts.measuring.evaluation import measure_costs, measure_routing, prepare, write_results
    from ir3de.scripts.metrics.accuracy import describe
    from ir3de.scripts.reports.evaluation import RESULTS

    prepared = prepare(asked)
    for note in prepared.notes:
        print(note, file=sys.stderr)
    routing = measure_routing(asked, prepared)
    if asked.output is None:
        print(json.dumps(routing, indent=2) if as_json else describe(routing))
        return 0
    results = measure_costs(asked, prepared, routing, asked.output)
    table = write_results(asked, prepared, results, asked.output)
    print((asked.output / RESULTS).read_text(encoding="utf-8") if as_json else table)
    return _tell_failures(results)


def _tell_failures(results: Results) -> int:
    """Says what failed, and returns the exit code."""
    failed = dict(results["failures"])
    for row in results["rows"]:
        if row.get("error"):
            failed[row["row"]] = row["error"]
    for name, error in failed.items():
        print(f"{name} failed: {error}", file=sys.stderr)
    return 1 if failed else 0


def _sizes(quick: bool, given: Mapping[str, int | None]) -> dict[str, int]:
    """The sizes of the evaluation; what is given by hand holds, in a trial too.

    Raises:
        ValueError: one is too small.
    """
    sizes = dict(QUICK if quick else USUAL)
    sizes |= {name: size for name, size in given.items() if size is not None}
    for name, least in LEAST.items():
        if sizes[name] < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {sizes[name]}.")
    return sizes


main = command("evaluate", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
