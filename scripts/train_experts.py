"""`ir3de train-experts`: a LoRA adapter a domain on one base model, from the same labelled text as `fit`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from ir3de.scripts.command import check_folder, command, need, values_of
from ir3de.scripts.data.rows import RowSource, add_data_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de train-experts`."""
    add_data_arguments(parser)
    parser.add_argument("--model", required=True, metavar="BASE", help="Hub id or folder of the base, a causal LM")
    parser.add_argument("--revision", help="revision of BASE")
    parser.add_argument("--gguf-file", help="name of the GGUF file, where the weights of BASE are GGUF")
    parser.add_argument("--base-name", help="what the adapters call their base (default: BASE)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the adapters, one subfolder each")
    parser.add_argument(
        "--held-out-where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="rows to measure perplexity on, as in --where; repeatable (default: every fifth row of --where)",
    )
    parser.add_argument("--tokens", type=int, default=25_000, help="tokens of training text a domain")
    parser.add_argument("--held-out-tokens", type=int, default=5_000, help="tokens of held-out text a domain")
    parser.add_argument("--epochs", type=int, default=1, help="times that the training text is read")
    parser.add_argument("--block", type=int, default=256, help="tokens of context in training and measuring")
    parser.add_argument("--batch-size", type=int, default=4, help="blocks a step")
    parser.add_argument("--rank", type=int, default=4, help="rank of LoRA, on every linear layer but the last")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    """Trains the adapters and prints what each is worth."""
    check_folder(args.output)
    need("peft", "adapters", "Training adapters needs peft")
    from ir3de.scripts.fitting.adapters import Base, TextOptions, TrainingOptions, describe, open_output, train_experts

    options = vars(args)
    source = RowSource.of(**options)
    held_out = replace(source, where=tuple(args.held_out_where)) if args.held_out_where else None
    text = TextOptions(source, held_out, args.tokens, args.held_out_tokens, args.block, args.seed)
    output = Path(args.output)
    open_output(output, {key: value for key, value in options.items() if key not in ("command", "output")})
    print(describe(train_experts(values_of(Base, options), text, values_of(TrainingOptions, options), output)))
    return 0


main = command("train-experts", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
