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
        " `cost`, `seconds` and `tokens`, the prompt's `domain`, and the `day`. Without files the table is shown",
    )
    parser.add_argument("--split", help="only rows whose `split` is this")
    parser.add_argument("--remove", action="store_true", help="take back what was added from these files")
    parser.add_argument(
        "--half-life",
        metavar="DAYS",
        help="days after which outcomes count half, against the newest; `none` for never. Those without a `day` are as"
        " old as the oldest that has one",
    )


def run(args: argparse.Namespace) -> int:
    """Adds outcomes or takes them back, and prints the table."""
    from ir3de.card_ir3de import outcomes_table
    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.scripts.publishing.targets import apply_edit
    from ir3de.scripts.reports.choices import Sample

    target = TargetRouter(args.router, args.output, args.create_pr)
    half_life = _half_life(args.half_life)
    if args.remove and not args.files:
        raise ValueError("--remove needs the files whose outcomes are to leave.")
    if not args.files and args.half_life is None:
        model = IR3DEModel.from_pretrained(args.router)
        print(outcomes_table(model.config, model.outcomes) or "This router has no outcomes.")
        return 0
    where = {"split": args.split} if args.split else None
    shown: list[str] = []

    def edit(model: IR3DEModel) -> None:
        """Adds the files' outcomes or takes them back; each file is a contribution of its own."""
        sample = Sample.of(args.files, where, model)
        if args.half_life is not None:
            model.set_half_life(half_life)
        for file in args.files:
            if args.remove:
                model.remove_outcomes(file, where)
            else:
                model.add_outcomes(file, where)
        shown[:] = [outcomes_table(model.config, model.outcomes) or "No outcomes are left."]
        shown.extend([sample.changes(model)] if args.files else [])

    message = f"{'Remove' if args.remove else 'Add'} outcomes" if args.files else "Set the outcomes' half-life"
    place = apply_edit(target, edit, message)
    print("\n\n".join(shown))
    print(f"{message}: {place}")
    return 0


def _half_life(given: str | None) -> float | None:
    """Days; None for never.

    Raises:
        ValueError: it is no number of days.
    """
    from ir3de.configuration_ir3de import check_half_life

    if given is None or given == "none":
        return None
    try:
        days = float(given)
    except ValueError:
        raise ValueError(f"--half-life takes a number of days, or `none`; got {given!r}.") from None
    check_half_life(days)
    return days


main = command("outcomes", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
