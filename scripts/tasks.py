"""`ir3de tasks`: tasks of lm-eval by routing and by each domain's own expert, and how close routing comes."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from ir3de.card_ir3de import markdown_table
from ir3de.experts_ir3de import describe_error
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.command import command
from ir3de.scripts.data.experts import read_experts
from ir3de.scripts.metrics.normalised import normalised_scores


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
    tasks, metrics = _pairs(args.task, "--task"), _pairs(args.metric, "--metric")
    pipe = _pipeline(args)
    names = pipe.model.config.expert_names
    unknown = sorted((tasks.keys() | metrics.keys()) - set(names))
    if unknown:
        raise ValueError(f"--task and --metric name domains without an expert: {unknown}. Experts: {names}.")
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    manager = _task_manager(args.include_path, [task for listed in tasks.values() for task in listed.split(",")])
    routed, own, errors = {}, {}, {}
    for domain, listed in tasks.items():
        try:
            for scores, way, expert in ((routed, "routed", None), (own, "own", domain)):
                results = _evaluate(pipe, expert, listed.split(","), manager, args)
                text = json.dumps(results, indent=1, default=str, ensure_ascii=False)
                (output / f"{domain}.{way}.json").write_text(text + "\n", encoding="utf-8")
                scores[domain] = score(results, metrics.get(domain))
        except Exception as error:  # the others go on
            own.pop(domain, None)
            errors[domain] = describe_error(error)
            print(f"{domain}: {errors[domain]}", file=sys.stderr)
    figures = {**normalised_scores(routed, own), "tasks": tasks, "limit": args.limit, "errors": errors}
    table = describe(figures)
    (output / "results.json").write_text(json.dumps(figures, indent=1).replace("NaN", "null") + "\n", encoding="utf-8")
    (output / "results.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 1 if errors else 0


def _pairs(entries: list[str], option: str) -> dict[str, str]:
    pairs = dict(entry.partition("=")[::2] for entry in entries)
    if not all(pairs.values()) or not all(pairs) or len(pairs) < len(entries):
        raise ValueError(f"{option} takes DOMAIN=NAME, each domain once; got {entries}.")
    return pairs


def _pipeline(args: argparse.Namespace) -> IR3DERoutingPipeline:
    model = IR3DEModel.from_pretrained(args.router)
    if args.experts:
        names = model.config.expert_names
        model.config.set_experts(read_experts(args.experts))
        if model.config.expert_names != names:
            raise ValueError(f"{args.experts} must list the experts {names}, got {model.config.expert_names}.")
    device = {} if args.device is None else {"device": args.device}
    return IR3DERoutingPipeline(model, max_loaded_experts=args.max_loaded_experts, **device)


def _task_manager(folder: str | None, tasks: list[str]) -> Any:
    """What knows the tasks; the thousands that come with lm-eval are read only where the folder's are not enough."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(f"Tasks need lm-eval ({error}): `pip install ir3de[evaluation]`.") from error
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    return manager if set(tasks) <= set(manager.all_tasks) else TaskManager(include_path=folder)


def _evaluate(
    pipe: IR3DERoutingPipeline, expert: str | None, tasks: list[str], manager: Any, args: argparse.Namespace
) -> dict[str, Any]:
    """What lm-eval says of tasks, answered by routing or by one expert."""
    from lm_eval import simple_evaluate

    from ir3de.scripts.routers.harness import RoutedLM

    found = simple_evaluate(
        model=RoutedLM(pipe, expert, args.batch_size),
        tasks=tasks,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        task_manager=manager,
        confirm_run_unsafe_code=args.allow_code,
        bootstrap_iters=0,
    )
    return {
        key: found[key] for key in ("results", "versions", "n-samples", "group_subtasks", "samples") if key in found
    }


def score(results: dict[str, Any], metric: str | None) -> float:
    """The mean over tasks of a metric, by default each task's first.

    Raises:
        ValueError: a task does not have the metric.
    """
    values = []
    groups = {name for name, members in results.get("group_subtasks", {}).items() if members}
    for task, figures in results["results"].items():
        if task in groups:
            continue
        numbers = {key: value for key, value in figures.items() if isinstance(value, (int, float)) and "," in key}
        numbers = {key: value for key, value in numbers.items() if "_stderr," not in key}
        name = metric or next(iter(numbers), None)
        if name not in numbers:
            raise ValueError(
                f"{task} has no metric {name!r}, but {', '.join(numbers) or 'none'}: choose with --metric."
            )
        values.append(float(numbers[name]))
    return sum(values) / len(values)


def describe(figures: dict[str, Any]) -> str:
    """The figures as a table in Markdown."""
    rows = []
    for domain, tasks in figures["tasks"].items():
        if domain in figures["errors"]:
            rows.append([domain, tasks, "–", "–", f"failed: {figures['errors'][domain]}"])
            continue
        of = figures["domains"][domain]
        rows.append([domain, tasks, f"{of['routed']:.4f}", f"{of['own']:.4f}", _percent(of["normalised"])])
    rows.append(["mean", "", "", "", _percent(figures["normalised"])])
    limit = f"\n\nA trial with {figures['limit']} items a task: no results." if figures["limit"] else ""
    return markdown_table(["domain", "tasks", "by routing", "by the domain's expert", "normalised (%)"], rows) + limit


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


main = command("tasks", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
