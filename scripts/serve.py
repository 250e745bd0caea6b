"""`ir3de serve`: answers OpenAI's and Anthropic's clients with a router and its experts, without the app."""

from __future__ import annotations

import argparse
import os
import re
import sys

from ir3de.choices_ir3de import BUDGET_ENDS
from ir3de.gateway.limits import Limits, Timeouts
from ir3de.scripts.command import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de serve`."""
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # or `--budget -1/day` is refused as an option of that name
    parser.add_argument("router", nargs="?", metavar="DIR_OR_ID", help="folder or Hub id; default: the embedded router")
    parser.add_argument("--revision", help="of the router on the Hub")
    parser.add_argument("--second-opinion", action="store_true", help="ask the router's second opinion where unsure")
    _add_choice(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with the router (default: 1)")
    parser.add_argument("--details", action="store_true", help="the route in every answer, as the field `ir3de`")
    parser.add_argument("--default-expert", metavar="NAME", help="who gets what is not routed, such as /v1/embeddings")
    parser.add_argument("--no-log", action="store_true", help="no line a request on standard error")
    parser.add_argument("--wrapper", action="append", default=[], metavar="TAG", help="a block of an agent's harness")
    _add_access(parser)
    _add_watch(parser)
    _add_traffic(parser)
    _add_budget(parser)
    _add_limits(parser)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    lowest = "probability below which the fallback answers (default: the router's own)"
    parser.add_argument("--min-score", type=float, metavar="P", help=lowest)
    parser.add_argument("--fallback", metavar="EXPERT", help="expert that answers then (default: the router's own)")
    loss = (
        "score that a choice may be expected to lose for learning of others than the best (default: the router's own)"
    )
    parser.add_argument("--explore-loss", type=float, metavar="X", help=loss)
    parser.add_argument("--preload", action="store_true", help="load experts on this machine before they are asked")


def _add_traffic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        metavar="FILE_OR_URL",
        default=os.environ.get("IR3DE_STORE"),
        help="keep answers and their scores (POST /v1/feedback) in a file of SQLite, or in a database that several"
        " servers share, such as postgresql+psycopg://user@host/name (or the variable IR3DE_STORE)",
    )
    parser.add_argument("--replica", metavar="NAME", help="name of this server in a store that several share")
    parser.add_argument(
        "--exchange",
        metavar="REPO_ID",
        help="exchange outcomes with other servers through a branch of this repository on the Hub, maybe the router's",
    )
    parser.add_argument("--every", default="15m", metavar="TIME", help="how often they do, such as 90s or 1h (15m)")
    parser.add_argument("--keep-text", metavar="FILE", help="keep the text of requests too, in this file")
    days = "take scores of answers for this long (default: 30)"
    parser.add_argument("--feedback-days", type=float, default=30, metavar="N", help=days)
    parser.add_argument(
        "--implicit",
        type=float,
        default=0,
        metavar="WEIGHT",
        help="count a question that is asked again, and a tool that failed, as this part of a bad score (default: 0)",
    )


def _add_budget(parser: argparse.ArgumentParser) -> None:
    help_ = "what answers may cost an hour, day or month: 20/day; or none (default: the router's own)"
    parser.add_argument("--budget", metavar="COST/PERIOD", help=help_)
    help_ = (
        "once it is spent, the cheapest expert answers, or nobody (status 429) until the next period (default:"
        " cheapest, or what the router's own budget says)"
    )
    parser.add_argument("--budget-end", choices=BUDGET_ENDS, help=help_)


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keys", metavar="FILE", help="JSON Lines of who may come (or the variable IR3DE_KEYS)")
    new = "print a new key (on standard error) and its line for the file, and stop"
    parser.add_argument("--new-key", metavar="NAME", help=new)
    parser.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="a web page that may use it")


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="look for a new router this often, and take it")
    parser.add_argument("--samples", metavar="FILE", help="labelled prompts that a new router must be no worse on")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits, timeouts = Limits(), Timeouts()
    whole = (
        ("body", "bytes of a request"),
        ("messages", "messages of a conversation"),
        ("tools", "tools that a request describes"),
        ("max-tokens", "tokens that an expert on this machine may be asked for"),
        ("at-once", "answers made at the same time by experts on this machine"),
        ("waiting", "requests that wait for one of these"),
        ("images", "images of a conversation for them"),
        ("pixels", "pixels of all of these together"),
    )
    for name, what in whole:
        default = getattr(limits, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})")
    for name, what in (
        ("connect", "an expert's server may take to accept a connection"),
        ("first-byte", "it may take to begin its answer"),
        ("idle", "it may pause within its answer"),
        ("longest", "its answer may take in all"),
    ):
        default = getattr(timeouts, name.replace("-", "_"))
        help_ = f"seconds that {what} (default: {default:g})"
        parser.add_argument(f"--{name}", type=float, default=default, metavar="SECONDS", help=help_)


def run(args: argparse.Namespace) -> int:
    """Serves until it is stopped."""
    try:
        from ir3de.gateway import server
        from ir3de.gateway.keys import new_key
    except ImportError as error:
        raise ImportError(f'The gateway needs further packages ({error}): `pip install "ir3de[serve]"`.') from error
    if args.new_key:
        key, line = new_key(args.new_key)
        print(f"The key, which is shown this once: {key}\nIts line for the file of keys:", file=sys.stderr)
        print(line)
        return 0
    from transformers.utils import logging

    from ir3de.scripts.fitting.embedded import build

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    limits = ("body", "messages", "tools", "max_tokens", "at_once", "waiting", "images", "pixels")
    service = server.Service(
        router=args.router or build(),
        revision=args.revision,
        second_opinion=args.second_opinion,
        min_score=args.min_score,
        fallback=args.fallback,
        explore_loss=args.explore_loss,
        preload=args.preload,
        host=args.host,
        port=args.port,
        workers=args.workers,
        limits={name: getattr(args, name) for name in limits},
        timeouts={name: getattr(args, name) for name in ("connect", "first_byte", "idle", "longest")},
        details=args.details,
        default_expert=args.default_expert,
        keys=args.keys,
        cors=args.cors,
        wrappers=args.wrapper,
        watch=args.watch,
        samples=args.samples,
        store=args.store,
        replica=args.replica,
        keep_text=args.keep_text,
        feedback_days=args.feedback_days,
        exchange=args.exchange,
        every=_seconds(args.every),
        budget=args.budget,
        budget_end=args.budget_end,
        implicit=args.implicit,
        log=not args.no_log,
    )
    service.check()
    where = f"http://{service.host}:{service.port}/v1"
    print(f"Serving {service.router} at {where} once it has loaded; GET /ready tells when.", flush=True)
    server.run(service)
    return 0


def _seconds(text: str) -> float:
    """A time such as `90`, `90s`, `15m` or `1h`, in seconds.

    Raises:
        ValueError: it is none, or less than a second.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds < 1:
        raise ValueError(f"`--every` must be a time of at least a second, such as 90s, 15m or 1h; got {text!r}.")
    return seconds


main = command("serve", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
