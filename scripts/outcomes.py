"""`ir3de outcomes`: adds what experts scored on prompts to a router, or takes it back, and shows what they do where."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ir3de.scripts.command import command, values_of
from ir3de.scripts.publishing.options import TargetRouter, add_target_arguments, check_once

if TYPE_CHECKING:
    from ir3de.modeling_ir3de import IR3DEModel


@dataclass(frozen=True)
class FromStore:
    """
    What is brought from a store; the fields are named as the options.

    Args:
        from_store (`str`): the store.
        take_back (`list[str]`): which answers leave it first.
        texts (`str`, *optional*): the file of their text.
        exchange (`str`, *optional*): a repository on the Hub where servers exchange outcomes.
        take_over (`bool`): whether what another store said there under the same names gives way.
        rename (`str`, *optional*): a server's old and new name, as in `OLD=NEW`.
        dry_run (`bool`): whether to change no router and no repository.
    """

    from_store: str
    take_back: list[str]
    texts: str | None
    exchange: str | None
    take_over: bool
    rename: str | None
    dry_run: bool

    @property
    def names(self) -> tuple[str, str] | None:
        """The old and the new name of a server.

        Raises:
            ValueError: they are not two.
        """
        if self.rename is None:
            return None
        old, sign, new = self.rename.partition("=")
        if not (old and sign and new) or old == new:
            raise ValueError(f"--rename takes the old and the new name of a server as OLD=NEW, got {self.rename!r}.")
        return old, new

    def check(self) -> None:
        """Raises ValueError where options do not go together."""
        if self.dry_run and (self.take_back or self.rename is not None):
            raise ValueError("--take-back removes and --rename changes for good: leave --dry-run away.")
        if self.take_over and self.exchange is None:
            raise ValueError("--take-over goes with --exchange.")


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
        "--from-store",
        metavar="FILE_OR_URL",
        help="instead of files: the scores that `ir3de serve --store` keeps; what this store gave before is replaced",
    )
    parser.add_argument(
        "--take-back",
        action="append",
        default=[],
        metavar="WHICH",
        help="remove answers from the store first, with all that was said of them: id=..., key=HASH, replica=...,"
        " since=...,until=... (times of UTC), scored=no; several joined by commas must all hold",
    )
    parser.add_argument("--since", metavar="DAY", help="show the table of this day and later alone, such as 2026-11-28")
    parser.add_argument("--texts", metavar="FILE", help="the file of `serve --keep-text`, for --take-back")
    parser.add_argument(
        "--exchange",
        metavar="REPO_ID",
        help="of --from-store: say in a branch of this repository on the Hub what the store holds, and add what other"
        " servers say there",
    )
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="of --exchange: what another store said there under the same name of a server, and which is lost, gives"
        " way to what this one holds",
    )
    parser.add_argument(
        "--rename", metavar="OLD=NEW", help="of --from-store: give the answers of a server there another name first"
    )
    parser.add_argument("--dry-run", action="store_true", help="of --from-store: show what would be, change no router")
    parser.add_argument(
        "--half-life",
        metavar="DAYS",
        help="days after which outcomes count half, against the newest; `none` for never. Those without a `day` are as"
        " old as the oldest that have one, a tenth of these and at least one left aside",
    )


def run(args: argparse.Namespace) -> int:
    """Adds outcomes or takes them back, and prints the table."""
    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.scripts.publishing.targets import apply_edit
    from ir3de.scripts.reports.choices import Sample, shown_outcomes

    target = values_of(TargetRouter, vars(args))
    check_once(args.files)
    half_life = _half_life(args.half_life)
    if args.since is not None:
        if args.files or args.from_store is not None or args.half_life is not None or args.output or args.create_pr:
            raise ValueError("--since only shows the table: it goes with a router alone.")
        return _show_since(IR3DEModel.from_pretrained(args.router), args.since)
    if args.from_store is not None:
        if args.files or args.remove or args.split or args.half_life is not None:
            raise ValueError("--from-store goes without files, --remove, --split and --half-life.")
        return _bring(target, values_of(FromStore, vars(args)))
    if args.take_back or args.texts or args.exchange or args.dry_run or args.take_over or args.rename is not None:
        raise ValueError("--take-back, --texts, --take-over, --rename, --exchange and --dry-run go with --from-store.")
    if args.remove and not args.files:
        raise ValueError("--remove needs the files whose outcomes are to leave.")
    if not args.files and args.half_life is None:
        print(shown_outcomes(IR3DEModel.from_pretrained(args.router)) or "This router has no outcomes.")
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
        shown[:] = [shown_outcomes(model) or "No outcomes are left."]
        if args.files:
            shown.append(sample.changes(model))

    message = "Set the outcomes' half-life"
    if args.files:
        number = f"{len(args.files):,} files" if len(args.files) > 1 else "a file"
        message = f"{'Remove' if args.remove else 'Add'} outcomes of {number}"
    place = apply_edit(target, edit, message)
    print("\n\n".join(shown))
    print(f"{message}: {place}")
    return 0


def _show_since(model: IR3DEModel, since: str) -> int:
    """Prints the table of a span of time."""
    from ir3de.outcome_rows_ir3de import check_day
    from ir3de.scripts.reports.choices import shown_outcomes
    from ir3de.scripts.reports.words import number_of

    try:
        check_day(since)
    except ValueError:
        raise ValueError(f"--since takes a day such as 2026-11-28, got {since[:60]!r}.") from None
    print(shown_outcomes(model, since) or f"This router has no outcomes of {since} or later.")
    days = [part.day for parts in model.outcomes.contributions.values() for part in parts.values()]
    if undated := days.count(None):
        print(f"Not counted: {number_of(undated, 'contribution that has', 'contributions that have')} no day.")
    return 0


def _bring(target: TargetRouter, asked: FromStore) -> int:
    """Gives a router the outcomes of a store, and prints the table before anything is written."""
    try:
        from ir3de.scripts.publishing.from_store import bring, read_store
        from ir3de.traffic.removal import Which
    except ImportError as error:
        raise ImportError(f'A store needs further packages ({error}): `pip install "ir3de[traffic]"`.') from error
    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.scripts.publishing.targets import apply_edit, check_target
    from ir3de.scripts.reports.words import number_of

    asked.check()
    back, names = [Which.read(text) for text in asked.take_back], asked.names
    if not asked.dry_run:
        check_target(target)
    model = IR3DEModel.from_pretrained(target.router)  # first: where that fails no answer is removed
    made, gone = read_store(
        asked.from_store, back, asked.texts, asked.exchange, not asked.dry_run, asked.take_over, names
    )
    if back:
        print(f"{number_of(gone, 'answer was', 'answers were')} taken back from the store.")
    brought = bring(model, made)
    print(f"{brought.table}\n\n{brought.said}")
    if asked.dry_run or (not brought.changed and target.output is None):
        print("The router is as before.")
        return 0
    message = "Add outcomes of traffic"

    def edit(model: IR3DEModel) -> None:
        """The same on the router as it is by now."""
        bring(model, made)

    print(f"{message}: {apply_edit(target, edit, message)}")
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
