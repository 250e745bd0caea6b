"""`ir3de outcomes`: adds what experts scored on prompts to a router, or takes it back, and shows what they do where."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ir3de.scripts.command import command
from ir3de.scripts.publishing.options import TargetRouter, add_target_arguments

if TYPE_CHECKING:
    from ir3de.modeling_ir3de import IR3DEModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de outcomes`."""
    add_target_arguments(parser)
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="JSON Lines, plain or .gz: `text` with `expert` and `score`, or with `scores` of several; and maybe"
        " `cost`, `seconds` and `tokens`, and the prompt's `domain`. Without files the table is shown",
    )
    parser.add_argument("--split", help="only rows whose `split` is this")
    parser.add_argument("--remove", action="store_true", help="take back what was added from these files")


def run(args: argparse.Namespace) -> int:
    """Adds outcomes or takes them back, and prints the table."""
    from ir3de.card_ir3de import outcomes_table
    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.scripts.publishing.targets import apply_edit
    from ir3de.scripts.reports.choices import Sample

    target = TargetRouter(args.router, args.output, args.create_pr)
    if not args.files:
        model = IR3DEModel.from_pretrained(args.router)
        print(outcomes_table(model.config, model.outcomes) or "This router has no outcomes.")
        return 0
    where = {"split": args.split} if args.split else None
    shown: list[str] = []

    def edit(model: IR3DEModel) -> None:
        """Adds the files' outcomes or takes them back; each file is a contribution of its own."""
        sample = Sample.of(args.files, where, model)
        for file in args.files:
            if args.remove:
                model.remove_outcomes(file, where)
            else:
                model.add_outcomes(file, where)
        shown[:] = [outcomes_table(model.config, model.outcomes) or "No outcomes are left.", sample.changes(model)]

    message = f"{'Remove' if args.remove else 'Add'} outcomes"
    place = apply_edit(target, edit, message)
    print("\n\n".join(shown))
    print(f"{message}: {place}")
    return 0


main = command("outcomes", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
