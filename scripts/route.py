"""`ir3de route`: prints the route of prompts, and what decided it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import tee

from ir3de.scripts.command import command
from ir3de.scripts.fitting.options import add_minimum_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de route`."""
    parser.add_argument("router", metavar="DIR", help="folder or Hub id of a router")
    parser.add_argument("prompt", nargs="+", help="prompt to route; repeatable; -: each line of standard input is one")
    parser.add_argument("--json", action="store_true", help="print one record a line instead")
    parser.add_argument("--variant", help="instead of the router's own")
    parser.add_argument("--num-votes", type=int, help="instead of the router's own")
    add_minimum_arguments(parser, "the router's own")
    parser.add_argument("--second-opinion", action="store_true", help="ask the router's second opinion where unsure")


def run(args: argparse.Namespace) -> int:
    """Routes the prompts."""
    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.pipeline_ir3de import IR3DERoutingPipeline
    from ir3de.scripts.reports.route import describe

    # The installed package reads any router, so no code of the repository runs.
    model = IR3DEModel.from_pretrained(args.router)
    router = IR3DERoutingPipeline(model, device="cpu", second_opinion=args.second_opinion)
    given = {key: getattr(args, key) for key in ("variant", "num_votes", "min_score", "min_familiarity")}
    given["fallback_expert"] = args.fallback
    choice = {key: value for key, value in given.items() if value is not None}
    prompts, routed = tee(_prompts(args.prompt))
    records = router(routed, generate=False, on_error="raise", explain=True, **choice)
    for prompt, record in zip(prompts, records, strict=True):
        print(json.dumps({"prompt": prompt, **record}, ensure_ascii=False) if args.json else describe(prompt, record))
    return 0


def _prompts(given: Iterable[str]) -> Iterator[str]:
    """The prompts, those of standard input where `-` stands; there, lines of white space alone are none."""
    for prompt in given:
        if prompt != "-":
            yield prompt
            continue
        found = False
        for line in sys.stdin:
            if not line.isspace():
                found = True
                yield line.rstrip("\r\n")
        if not found:
            raise ValueError("Standard input holds no prompt: give one a line.")


main = command("route", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
