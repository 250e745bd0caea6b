"""`ir3de route`: prints the route of prompts, and what decided it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.command import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de route`."""
    parser.add_argument("router", metavar="DIR", help="folder or Hub id of a router")
    parser.add_argument("prompt", nargs="+", help="prompt to route; repeatable")
    parser.add_argument("--json", action="store_true", help="print one record a line instead")
    parser.add_argument("--variant", help="instead of the router's own")
    parser.add_argument("--num-votes", type=int, help="instead of the router's own")
    parser.add_argument("--second-opinion", action="store_true", help="ask the router's second opinion where unsure")


def run(args: argparse.Namespace) -> int:
    """Routes the prompts."""
    # The installed package reads any router, so no code of the repository runs.
    model = IR3DEModel.from_pretrained(args.router)
    router = IR3DERoutingPipeline(model, device="cpu", second_opinion=args.second_opinion)
    choice = {key: value for key in ("variant", "num_votes") if (value := getattr(args, key)) is not None}
    for prompt, record in zip(args.prompt, router(args.prompt, generate=False, explain=True, **choice), strict=True):
        print(json.dumps({"prompt": prompt, **record}, ensure_ascii=False) if args.json else describe(prompt, record))
    return 0


def describe(prompt: str, record: Mapping[str, Any]) -> str:
    """A route in words: the prompt, the ranking, and the tokens that decided."""
    ranking = "  ".join(f"{expert['expert']} {expert['score']:.2f}" for expert in record["ranking"])
    second = "  (with the second opinion)" if "second_opinion" in record else ""
    return f"{prompt}\n  -> {ranking}{second}\n     decided by: {deciding_tokens(record)}"


def deciding_tokens(record: Mapping[str, Any], most: int = 6) -> str:
    """The tokens that spoke most for the chosen expert, the strongest first."""
    strongest = sorted(record["tokens"], key=lambda token: -token["contribution"])[:most]
    words = [token["token"].strip() or repr(token["token"]) for token in strongest if token["contribution"] > 0]
    return " ".join(dict.fromkeys(words))


main = command("route", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
