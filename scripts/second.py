"""`ir3de second`: gives a router a second opinion, on a sentence encoder, for prompts that it is unsure of."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from ir3de.scripts.command import check_folder, command
from ir3de.scripts.data.rows import RowSource, add_data_arguments, read_rows
from ir3de.scripts.fitting.options import MOST_TEXTS

OPTIMISTIC = (
    "These are prompts of --data, each left out of the second opinion's own fit. If the router was fitted on them, as"
    " it is on all rows of its training data, it is surer and more often right here than elsewhere, which hides what"
    " the second opinion gains: give other rows with --test-data or --test-where."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de second`."""
    parser.add_argument("router", metavar="DIR", help="folder of a router; the second opinion goes into second/")
    add_data_arguments(parser)
    parser.add_argument("--encoder", help="Hub id or folder of a sentence encoder; default: all-MiniLM-L6-v2")
    parser.add_argument("--encoder-revision", help="revision of the encoder")
    parser.add_argument(
        "--max-train-per-domain",
        type=int,
        default=MOST_TEXTS,
        help=f"prompts that the encoder reads (default: {MOST_TEXTS}; 0: all)",
    )
    parser.add_argument("--test-data", action="append", metavar="FILE_OR_ID", help="as --data, to measure on")
    parser.add_argument(
        "--test-where", action="append", default=[], metavar="KEY=VALUE", help="as --where, to measure on"
    )
    parser.add_argument("--test-split", default="test", help="split of a Hub data set to measure on (default: test)")
    parser.add_argument(
        "--output", metavar="DIR", help="folder for second.md and second.png, what is printed as a plot"
    )


def run(args: argparse.Namespace) -> int:
    """Fits a second opinion, saves it beside the router, and prints what it is worth."""
    from ir3de.atomic_save_ir3de import CONFIG, SECOND_FOLDER
    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.route_selector_ir3de import probabilities
    from ir3de.scripts.data.selection import of_experts
    from ir3de.scripts.fitting.second import choose, encoded, labels_of, over_bounds, ready, router_scores, rows_to_fit
    from ir3de.scripts.reports.second import describe, write
    from ir3de.scripts.routers.encoders import MINILM

    check_folder(args.output)
    if not Path(args.router, CONFIG).is_file():
        raise ValueError(f"{args.router} is no folder of a router: download the router first, and push it afterwards.")
    if args.max_train_per_domain < 0:
        raise ValueError(f"--max-train-per-domain must be at least 0, got {args.max_train_per_domain}.")
    check_folder(args.router, "make a copy of the router")
    model = IR3DEModel.from_pretrained(args.router)
    names = model.config.expert_names
    opinion = ready(args.encoder, args.encoder_revision)
    source = RowSource.of(**vars(args))
    train = rows_to_fit(read_rows(source), names, args.max_train_per_domain or None)
    rows, notes = train.rows, train.notes()
    other = bool(args.test_data or args.test_where)  # rows than those to fit on
    if other:
        data = tuple(args.test_data or args.data)
        test_source = replace(source, sources=data, where=tuple(args.test_where), split=args.test_split)
        test = of_experts(read_rows(test_source), names, "--test-data")
        rows = test.rows
        notes += [f"To measure on: {note}" for note in test.notes("nothing of it is measured")]
    for note in notes:
        print(note, file=sys.stderr)
    q = choose(opinion, encoded(opinion, [row.text for row in train.rows]), labels_of(train.rows, names), names)
    if other:
        q = probabilities(opinion.logits(encoded(opinion, [row.text for row in rows]), names), **opinion.calibration)
    figures = over_bounds(router_scores(model, rows), q, labels_of(rows, names))
    if not args.encoder:  # a folder of this machine means nothing to others
        opinion.encoder = MINILM
    place = Path(args.router, SECOND_FOLDER)
    opinion.save_pretrained(place)
    report = describe(figures, len(rows)) + ("" if other else f"\n\n{OPTIMISTIC}")
    print(f"{report}\n\nSaved a second opinion to {place} (lambda {opinion.regularization:g} x mean diagonal).")
    router = json.dumps(args.router, ensure_ascii=False)
    print(f'Use it: pipeline("ir3de-routing", model={router}, trust_remote_code=True, second_opinion=True)')
    if args.output:
        write(report, figures, Path(args.output))
    return 0


main = command("second", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
