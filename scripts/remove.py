"""`ir3de remove`: takes an expert out of a router, as if it had never been there."""

from __future__ import annotations

import argparse
import sys

from ir3de.scripts.command import command, values_of
from ir3de.scripts.publishing.options import TargetRouter, add_target_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de remove`."""
    add_target_arguments(parser)
    parser.add_argument("name", help="of the expert")


def run(args: argparse.Namespace) -> int:
    """Removes an expert."""
    from ir3de.scripts.publishing.targets import apply_edit

    target = values_of(TargetRouter, vars(args))
    message = f"Remove {args.name}"
    place = apply_edit(target, lambda model: model.remove_expert(args.name), message)
    print(f"{message}: {place}")
    return 0


main = command("remove", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
