"""`ir3de quickstart`: builds the embedded router, whose embeddings, tokenizer and LLM are SmolLM2-135M-Instruct's."""

from __future__ import annotations

import argparse
import sys

from ir3de.scripts.command import check_folder, command
from ir3de.scripts.data.rows import RowSource, add_data_arguments, read_rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de quickstart`."""
    parser.add_argument("--output", metavar="DIR", help="folder for the router; default: the cache of huggingface_hub")
    parser.add_argument("--refit", action="store_true", help="first make the statistics anew, from --data")
    parser.add_argument(
        "--remeasure", action="store_true", help="measure calibration and familiarity anew, as --refit does too"
    )
    add_data_arguments(parser, required=False)


def run(args: argparse.Namespace) -> int:
    """Builds the router and prints where it is."""
    from ir3de.scripts.fitting.embedded import build, refit, remeasure

    check_folder(args.output)
    if args.refit != bool(args.data):
        raise ValueError("Give --refit and --data together, to make the embedded statistics anew, or neither.")
    if args.refit:
        source = RowSource.of(**vars(args))
        print(refit(read_rows(source), source.hub_ids or None).describe())
    if args.refit or args.remeasure:
        found, error = remeasure()
        print(f"{found.describe()}\nExpected calibration error on the questions held out: {error:.3f}")
    print(build(args.output))
    return 0


main = command("quickstart", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
