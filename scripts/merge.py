"""`ir3de merge`: merges statistics, other routers or a pull request into a router, and shows before and after."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir3de.scripts.command import command, values_of
from ir3de.scripts.data.rows import Row, RowSource, add_data_arguments, read_rows
from ir3de.scripts.publishing.options import TargetRouter, add_target_arguments, check_once

if TYPE_CHECKING:
    from ir3de.modeling_ir3de import IR3DEModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de merge`."""
    add_target_arguments(parser)
    parser.add_argument(
        "source", nargs="*", help="statistics file NAME.safetensors, or folder or Hub id of another router"
    )
    parser.add_argument("--name", help="of the domain that the statistics files are of; default: each file's name")
    parser.add_argument("--pr", type=int, metavar="N", help="a pull request of the router's repository")
    parser.add_argument("--head", metavar="COMMIT", help="merge --pr N only as --dry-run showed it, at this commit")
    parser.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    parser.add_argument(
        "--own", action="store_true", help="of text that you know: take it though it takes other domains' prompts"
    )
    add_data_arguments(parser, required=False)


def run(args: argparse.Namespace) -> int:
    """Merges, and prints what that changes."""
    from huggingface_hub import HfApi

    from ir3de.edits_ir3de import TakesPrompts
    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.scripts.publishing.review import Proposal, Snapshot, accumulated, compare
    from ir3de.scripts.publishing.targets import apply_edit, check_target

    if bool(args.source) == (args.pr is not None):
        raise ValueError("Give either sources to merge or --pr N.")
    target = values_of(TargetRouter, vars(args))
    if not args.dry_run:
        check_target(target)
    named = _named(args.source, args.name)
    given = list(read_rows(RowSource.of(**vars(args)))) if args.data else []

    def edit(model: IR3DEModel) -> None:
        """Merges, and prints before and after, also where the merge is refused for what it would take."""
        rows = given or [Row(sample.text, sample.domain) for sample in model.samples]
        before, sources = Snapshot.of(model, rows), named
        measured, joined = model.without_joined(), len(model.config.joined or ())
        if args.pr is not None:
            proposal = Proposal(args.router, args.pr, model, args.head)
            print(f"pull request {args.pr} at {proposal.head} (merge just this with --head {proposal.head})")
            sources = [proposal]

        def show() -> None:
            """Prints what the merge changes, and what it and earlier ones do together."""
            after = Snapshot.of(model, rows)
            print(compare(before, after))
            if args.name is None and any(_is_statistics(source) for source in args.source):
                for domain in sorted(after.W.keys() - before.W.keys()):
                    print(f"{domain!r} is a new domain. Where a file is of another than its name says: --name NAME")
            if rows and not given:
                print(f"recall: of the router's own {len(rows)} samples, which are few")
            if measured is not None:
                print(accumulated(Snapshot.of(measured, rows), after, joined))

        try:
            model.merge(*sources, own=args.own)
        except TakesPrompts:
            model.merge(*sources, own=True)
            show()
            print("None of this was done:")
            raise
        show()

    if args.dry_run:
        edit(IR3DEModel.from_pretrained(args.router))
        return 0
    names = [Path(source).name if Path(source).exists() else source for source in args.source]  # no local paths
    message = f"Merge {', '.join(names)}" if args.pr is None else f"Merge pull request {args.pr}"
    place = apply_edit(target, edit, message)
    if args.pr is not None and args.output is None:
        comment = f"It was merged: {place}"
        HfApi().change_discussion_status(args.router, args.pr, "closed", comment=comment)
    print(f"{message}: {place}")
    return 0


def _named(given: Sequence[str], name: str | None) -> list[Any]:
    """The sources as a router takes them: statistics files with the name of their domain, where one is given.

    Raises:
        ValueError: one is given twice, or the name does not go with them.
    """
    check_once(given)
    if name is None:
        return list(given)
    if not given or not all(_is_statistics(source) for source in given):
        raise ValueError("--name says whose statistics files are merged: leave it out for routers and pull requests.")
    return [{name: source} for source in given]


def _is_statistics(source: str) -> bool:
    return Path(source).suffix == ".safetensors"


main = command("merge", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
