"""`ir3de remove`: takes an expert out of a router, as if it had never been there."""

from __future__ import annotations

import argparse
import sys

from ir3de.scripts.edit import add_target_arguments, apply_edit


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


def main(arguments: list[str] | None = None) -> int:
    """Runs `ir3de remove`."""
    parser = argparse.ArgumentParser(prog="ir3de remove", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
