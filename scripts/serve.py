"""`ir3de serve`: answers OpenAI's clients with a router and its experts, without the app."""

from __future__ import annotations

import argparse
import sys

from ir3de.gateway.limits import Limits
from ir3de.scripts.command import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de serve`."""
    parser.add_argument("router", nargs="?", metavar="DIR_OR_ID", help="folder or Hub id; default: the embedded router")
    parser.add_argument("--revision", help="of the router on the Hub")
    parser.add_argument("--second-opinion", action="store_true", help="ask the router's second opinion where unsure")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    for name, what in (("at-once", "answers made at the same time"), ("waiting", "requests that wait for their turn")):
        default = getattr(Limits(), name.replace("-", "_"))
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{what}, by experts on this machine (default: {default})"
        )


def run(args: argparse.Namespace) -> int:
    """Serves until it is stopped."""
    try:
        import uvicorn

        from ir3de.gateway.app import application
        from ir3de.gateway.gateway import Gateway
        from ir3de.gateway.serving import served
        from ir3de.gateway.settings import Settings
    except ImportError as error:
        raise ImportError(f"The gateway needs further packages ({error}): `pip install ir3de[serve]`.") from error
    from transformers.utils import logging

    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.pipeline_ir3de import IR3DERoutingPipeline
    from ir3de.scripts.fitting.embedded import build

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = IR3DEModel.from_pretrained(args.router or build(), revision=args.revision)
    router = IR3DERoutingPipeline(model, second_opinion=args.second_opinion)
    settings = Settings(limits=Limits(at_once=args.at_once, waiting=args.waiting))
    gateway = Gateway(served(router), settings)
    uvicorn.run(application(gateway), host=args.host, port=args.port, log_level="warning")
    return 0


main = command("serve", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
