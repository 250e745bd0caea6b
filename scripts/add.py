"""`ir3de add`: gives a router one more expert, from statistics or from text of its domain."""

from __future__ import annotations

import argparse
import sys

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.scripts.command import command
from ir3de.scripts.data.rows import RowSource, add_text_arguments, read_texts
from ir3de.scripts.data.sampling import sample_per_domain
from ir3de.scripts.publishing.targets import add_spec_arguments, add_target_arguments, apply_edit, expert_spec
from ir3de.scripts.second import MOST_TEXTS
from ir3de.second_opinion_ir3de import SecondOpinion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de add`."""
    add_target_arguments(parser)
    parser.add_argument("name", help="of the expert and its domain")
    add_spec_arguments(parser)
    parser.add_argument("--statistics", action="append", metavar="FILE", help="of `ir3de collect`; repeatable")
    add_text_arguments(parser, required=False)
    parser.add_argument("--replace", metavar="NAME", help="an expert that leaves at the same time")


def run(args: argparse.Namespace) -> int:
    """Adds an expert."""
    if bool(args.statistics) == bool(args.data) and not args.replace:
        raise ValueError("Give the domain's text with --data, or its statistics with --statistics.")

    def edit(model: IR3DEModel) -> None:
        """Adds the expert, or puts it in the place of another."""
        source = {"texts": read_texts(RowSource.from_args(args)) if args.data else None, "statistics": args.statistics}
        if args.replace:
            model.replace_expert(args.replace, expert_spec(args), **source)
        else:
            model.add_expert(expert_spec(args), **source)
        opinion = model.second_opinion
        if args.data and opinion is not None and args.name not in opinion.statistics:
            introduce(opinion, args.name, list(read_texts(RowSource.from_args(args))))

    message = f"Replace {args.replace} by {args.name}" if args.replace else f"Add {args.name}"
    place = apply_edit(args.router, edit, message, args.output, args.create_pr)
    print(f"{message}: {place}")
    return 0


def introduce(opinion: SecondOpinion, name: str, texts: list[str]) -> None:
    """Adds an expert to a second opinion too, with a sample of its text; without the encoder it stays unknown there."""
    sample = [texts[i] for i in sample_per_domain([name] * len(texts), MOST_TEXTS, 0)]
    try:
        opinion.add_expert(name, sample)
    except (ImportError, OSError) as error:
        print(f"Not added to the second opinion: {error}", file=sys.stderr)


main = command("add", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
