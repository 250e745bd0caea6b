"""`ir3de publish`: sends a router to the Hub, or a statistics file or outcomes to one there, or makes a Space."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ir3de.names_ir3de import name_of_file
from ir3de.scripts.command import command, values_of
from ir3de.scripts.publishing.options import TargetRouter, add_private_argument, add_spec_arguments, expert_spec

if TYPE_CHECKING:
    from ir3de.modeling_ir3de import IR3DEModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de publish`."""
    parser.add_argument(
        "file",
        nargs="?",
        help="statistics of one domain, by `ir3de collect`, or the folder of a router that replaces it",
    )
    parser.add_argument("--router", metavar="DIR_OR_ID", help="Hub id (or folder) of the router")
    parser.add_argument(
        "--outcomes",
        action="append",
        default=[],
        metavar="FILE",
        help="as for `ir3de outcomes`; repeatable",
    )
    parser.add_argument("--name", help="of the domain; default: the name of the file")
    add_spec_arguments(parser)
    parser.add_argument("--create-pr", action="store_true", help="propose it as a pull request")
    add_private_argument(parser)
    space = parser.add_argument_group("a Space, instead of statistics")
    space.add_argument("--space", metavar="ID", help="of the Space; without --router it shows the embedded router")
    space.add_argument("--revision", help="of the router; default: its present commit")
    space.add_argument("--samples", metavar="FILE", help="JSON Lines of labelled prompts that the app shows")
    space.add_argument("--private", action="store_true", help="a new Space is private")


def run(args: argparse.Namespace) -> int:
    """Publishes statistics, or a Space."""
    from ir3de.scripts.publishing.space import publish_space
    from ir3de.scripts.publishing.targets import apply_edit, push_folder

    contributes = bool(args.file or args.outcomes)
    if contributes == bool(args.space) or (contributes and not args.router):
        raise ValueError("Give a statistics file or --outcomes, and their --router; or give --space.")
    if args.space:
        if args.samples:
            print(f"The text of {args.samples} goes to {args.space} too: whoever can read the Space reads it.")
        print(publish_space(args.space, args.router, args.revision, args.samples, args.private))
        return 0
    if args.file and not Path(args.file).exists():
        raise FileNotFoundError(f"There is no file or folder {args.file}: give statistics, or the folder of a router.")
    target = values_of(TargetRouter, {**vars(args), "output": None})
    if args.file and Path(args.file).is_dir():
        if args.outcomes or args.name or args.model:
            raise ValueError(
                f"{args.file} is a folder: all of its router is published, with no other outcomes, name or model."
            )
        print(f"Publish a router: {push_folder(args.file, target)}")
        return 0
    name = args.name or (name_of_file(Path(args.file).stem) if args.file else "")
    spec = expert_spec(name, args.model, args.model_revision, args.system_prompt, args.cost)
    if not args.file and len(spec) > 1:
        raise ValueError("--name, --model and the like describe a domain and its expert: give its statistics too.")

    def edit(model: IR3DEModel) -> None:
        """Adds the contributions."""
        if args.file:
            add_statistics(model)
        for file in args.outcomes:  # each is a contribution of its own
            model.add_outcomes(file)

    def add_statistics(model: IR3DEModel) -> None:
        """Adds to a domain that is there, or a new one."""
        if name not in model.config.expert_names:
            model.add_expert(spec, statistics=args.file, own=True)
        elif len(spec) == 1:
            model.merge({name: args.file}, own=True)  # whoever merges it looks at what it takes
        else:
            raise ValueError(
                f"{args.router} has an expert {name!r} already: leave out --model and the like to add to its"
                " domain, or choose another --name."
            )

    message = f"Contribute to {name}" if args.file else "Contribute outcomes"
    print(f"{message}: {apply_edit(target, edit, message)}")
    return 0


main = command("publish", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
