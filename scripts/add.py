"""`ir3de add`: gives a router one more expert, from statistics or from text of its domain."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ir3de.scripts.command import command, values_of
from ir3de.scripts.data.rows import RowSource, add_text_arguments, read_texts
from ir3de.scripts.publishing.options import TargetRouter, add_spec_arguments, add_target_arguments, expert_spec

if TYPE_CHECKING:
    from ir3de.modeling_ir3de import IR3DEModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de add`."""
    add_target_arguments(parser)
    parser.add_argument("name", help="of the expert and its domain")
    add_spec_arguments(parser)
    parser.add_argument("--statistics", action="append", metavar="FILE", help="of `ir3de collect`; repeatable")
    parser.add_argument("--own", action="store_true", help="the statistics may take prompts of other domains")
    add_text_arguments(parser, required=False)
    parser.add_argument("--replace", metavar="NAME", help="an expert that leaves at the same time")


def run(args: argparse.Namespace) -> int:
    """Adds an expert."""
    from ir3de.scripts.fitting.second import introduce
    from ir3de.scripts.publishing.targets import apply_edit

    if bool(args.statistics) == bool(args.data) and not args.replace:
        raise ValueError("Give the domain's text with --data, or its statistics with --statistics.")
    spec = expert_spec(args.name, args.model, args.model_revision, args.system_prompt, args.cost)

    def edit(model: IR3DEModel) -> None:
        """Adds the expert, or puts it in the place of another."""
        texts = read_texts(RowSource.of(**vars(args)), args.name) if args.data else None
        if args.replace:
            model.replace_expert(args.replace, spec, texts=texts, statistics=args.statistics, own=args.own)
        else:
            model.add_expert(spec, texts=texts, statistics=args.statistics, own=args.own)
        opinion = model.second_opinion
        if args.data and opinion is not None and args.name not in opinion.statistics:
            introduce(opinion, args.name, list(read_texts(RowSource.of(**vars(args)), args.name)))

    message = f"Replace {args.replace} by {args.name}" if args.replace else f"Add {args.name}"
    place = apply_edit(values_of(TargetRouter, vars(args)), edit, message)
    print(f"{message}: {place}")
    return 0


main = command("add", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
