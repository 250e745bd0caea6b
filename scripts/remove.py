"""`ir3de remove`: takes an expert out of a router, as if it had never been there."""

from __future__ import annotations

import argparse
import sys

from ir3de.scripts.command import command
from ir3de.scripts.publishing.targets import add_target_arguments, apply_edit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de remove`."""
    add_target_arguments(parser)
    parser.add_argument("name", help="of the expert")


def run(args: argparse.Namespace) -> int:
    """Removes an expert."""
    message = f"Remove {args.name}"
    place = apply_edit(args.router, lambda model: model.remove_expert(args.name), message, args.output, args.create_pr)
    print(f"{message}: {place}")
    return 0


main = command("remove", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
