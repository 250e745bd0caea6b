"""`ir3de inspect`: a look at data before a long run: domains, lengths, scripts, duplicates, bad rows."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from ir3de.scripts.command import command
from ir3de.scripts.data.rows import RowSource, add_data_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de inspect`."""
    parser.add_argument("sources", nargs="*", metavar="DATA", help="the same as --data")
    add_data_arguments(parser, required=False)


def run(args: argparse.Namespace) -> int:
    """Reads the data and says what they are like."""
    from ir3de.scripts.data.inspection import describe, inspect
    from ir3de.scripts.fitting.estimate import estimate

    args.data = [*args.sources, *(args.data or [])]
    if not args.data:
        raise ValueError("Name the data: ir3de inspect train.csv")
    seen = inspect(replace(RowSource.of(**vars(args)), skip_bad_rows=True))
    print(describe(seen))
    print(estimate({name: domain.rows for name, domain in seen.domains.items()}, seen.characters).describe())
    return 0


main = command("inspect", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
