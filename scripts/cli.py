"""The `ir3de` command: one subcommand a file."""

from __future__ import annotations

import argparse
import sys

from huggingface_hub.errors import HTTPError

from ir3de.scripts import (
    add,
    benchmark,
    collect,
    evaluate,
    fit,
    merge,
    publish,
    quickstart,
    remove,
    route,
    second,
    serve,
    tasks,
    train_experts,
)

COMMANDS = {
    "fit": fit,
    "route": route,
    "evaluate": evaluate,
    "tasks": tasks,
    "add": add,
    "remove": remove,
    "collect": collect,
    "publish": publish,
    "merge": merge,
    "second": second,
    "serve": serve,
    "train-experts": train_experts,
    "benchmark": benchmark,
    "quickstart": quickstart,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; bad input ends with one line on standard error and exit code 2."""
    parser = argparse.ArgumentParser(prog="ir3de", description="A linear router for domain-expert language models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").strip().split("\n")[0].split(": ", 1)[1]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    args = parser.parse_args(arguments)
    try:
        return COMMANDS[args.command].run(args)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"ir3de {args.command}: {error}", file=sys.stderr)
        return 2
    except HTTPError as error:  # those that say something of a repository are OSErrors too
        print(f"ir3de {args.command}: the Hub cannot be reached ({error}). Your files are unchanged.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
