"""`ir3de tasks`: tasks of lm-eval by routing and by each domain's own expert, and how close routing comes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ir3de.scripts.command import check_folder, command, need, values_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de tasks`."""
    parser.add_argument("router", metavar="DIR", help="folder or Hub id of a router")
    parser.add_argument(
        "--task",
        action="append",
        required=True,
        metavar="DOMAIN=TASK[,TASK]",
        help="tasks of lm-eval, such as math=gsm8k, and the domain whose expert is to be matched; repeatable",
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="DOMAIN=METRIC",
        help="such as math=exact_match,strict-match; default: the first that lm-eval reports",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for results.md and results.json")
    parser.add_argument("--experts", metavar="YAML", help="list of experts of the router's names, instead of its own")
    parser.add_argument("--include-path", metavar="DIR", help="folder with further task files")
    parser.add_argument("--limit", type=int, help="items of each task: for a trial, its figures are no results")
    parser.add_argument("--num-fewshot", type=int, help="examples in each prompt (default: the task's)")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts that an expert answers at once (default: 8)")
    parser.add_argument("--max-loaded-experts", type=int, help="models that stay in memory")
    parser.add_argument("--device", help="of the router and the experts")
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="run code that experts write, as humaneval does: in a sandbox of yours",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates each domain's tasks twice; the exit code is 1 where a task failed."""
    check_folder(args.output)
    need("lm_eval", "evaluation", "Tasks need lm-eval")
    from ir3de.pipeline_ir3de import IR3DERoutingPipeline
    from ir3de.scripts.measuring.tasks import describe, load_router, measure_tasks
    from ir3de.scripts.metrics.tasks import TaskOptions

    tasks, metrics = _pairs(args.task, "--task"), _pairs(args.metric, "--metric")
    options = values_of(TaskOptions, vars(args))
    model = load_router(args.router, args.experts)
    device = {} if args.device is None else {"device": args.device}
    pipe = IR3DERoutingPipeline(model, max_loaded_experts=args.max_loaded_experts, **device)
    figures = measure_tasks(pipe, tasks, metrics, options, Path(args.output), args.include_path)
    print(describe(figures))
    return 1 if figures["errors"] else 0


def _pairs(entries: Sequence[str], option: str) -> dict[str, str]:
    """What each domain is given, in the order of the entries."""
    pairs = {}
    for entry in entries:
        domain, _, name = entry.partition("=")
        if not domain or not name or domain in pairs:
            raise ValueError(f"{option} takes DOMAIN=NAME, each domain once; got {entries}.")
        pairs[domain] = name
    return pairs


main = command("tasks", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
