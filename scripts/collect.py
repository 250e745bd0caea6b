"""`ir3de collect`: makes the statistics of one domain or of all from text, on any number of cores or machines.

It runs on datatrove: the files of the data are shared out among tasks, each task leaves one file of sums, and the last
step adds these up. A collection that was stopped goes on where it was: finished tasks are not run again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ir3de.names_ir3de import file_name
from ir3de.scripts.command import check_file, check_folder, command
from ir3de.scripts.data.rows import RowSource, add_text_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de collect`."""
    parser.add_argument("--router", required=True, metavar="DIR_OR_ID", help="folder or Hub id of the router")
    parser.add_argument("--name", "--domain", help="of the domain; by default all domains of the data, in one pass")
    add_text_arguments(parser)
    parser.add_argument(
        "--output", metavar="FILE_OR_DIR", help="default: NAME.safetensors, or the folder `statistics` for all domains"
    )
    parser.add_argument("--tasks", type=int, help="among which files are shared; default: one a file, at most 128")
    parser.add_argument("--workers", type=int, help="tasks that run at a time; default: all cores")
    parser.add_argument("--tasks-folder", metavar="DIR", help="for the tasks' sums and logs; default: OUTPUT.tasks")
    parser.add_argument("--engine", choices=("local", "slurm", "ray"), default="local", help="default: local")
    parser.add_argument(
        "--engine-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of datatrove's executor, such as partition=cpu and time=02:00:00 for Slurm; repeatable",
    )
    parser.add_argument("--device", default="cpu", help="where prompts' rows are summed, such as cuda")
    parser.add_argument("--epsilon", type=float, help="make the statistics differentially private for each prompt")
    parser.add_argument("--delta", type=float, default=1e-6, help="of the private mode (default: 1e-6)")


def run(args: argparse.Namespace) -> int:
    """Collects statistics."""
    os.environ.setdefault(
        "LOGURU_DIAGNOSE", "NO"
    )  # or the log of a failed task would quote the text that it was reading
    try:
        from ir3de.scripts.collecting.collect import Collection, collect, read_options
    except ModuleNotFoundError as error:
        if error.name not in ("datatrove", "loguru"):
            raise
        raise ImportError('Collecting needs datatrove: `pip install "ir3de[collect]"`.') from error
    output = Path(args.output or (f"{file_name(args.name)}.safetensors" if args.name else "statistics"))
    (check_file if args.name else check_folder)(str(output))
    check_folder(args.tasks_folder or f"{output}.tasks", "name another with --tasks-folder")
    collection = Collection(
        router=args.router,
        source=RowSource.of(**vars(args)),
        name=args.name,
        output=output,
        folder=Path(args.tasks_folder or f"{output}.tasks"),
        device=args.device,
        epsilon=args.epsilon,
        delta=args.delta,
    )
    done = collect(collection, args.engine, args.tasks, args.workers, read_options(args.engine_option))
    for note in done.notes:
        print(note, file=sys.stderr)
    for path, statistics in done.written.items():
        print(f"{path}: {statistics.rows('prompts'):,} prompts, {statistics.rows('tokens'):,} tokens.")
    print(done.next)
    return 0


main = command("collect", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
