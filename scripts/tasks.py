"""`ir3de tasks`: tasks of lm-eval by routing and by each domain's own expert, and how close routing comes."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ir3de.card_ir3de import markdown_table
from ir3de.experts_ir3de import describe_error
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.command import command
from ir3de.scripts.data.experts import read_experts
from ir3de.scripts.metrics.normalised import NormalisedScores, normalised_scores
from ir3de.scripts.metrics.tasks import TaskOptions, evaluate_tasks, score, task_manager


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


class Figures(NormalisedScores):
    """What `results.json` holds: the `tasks` of each domain, the `limit` of items, and by domain the `errors` too."""

    tasks: dict[str, str]
    limit: int | None
    errors: dict[str, str]


def run(args: argparse.Namespace) -> int:
    """Evaluates each domain's tasks twice; the exit code is 1 where a task failed."""
    tasks, metrics = _pairs(args.task, "--task"), _pairs(args.metric, "--metric")
    options = TaskOptions(args.limit, args.num_fewshot, args.batch_size, args.allow_code)
    model = _load(args.router, args.experts)
    device = {} if args.device is None else {"device": args.device}
    pipe = IR3DERoutingPipeline(model, max_loaded_experts=args.max_loaded_experts, **device)
    names = model.config.expert_names
    unknown = sorted((tasks.keys() | metrics.keys()) - set(names))
    if unknown:
        raise ValueError(f"--task and --metric name domains without an expert: {unknown}. Experts: {names}.")
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    manager = task_manager(args.include_path, [task for listed in tasks.values() for task in listed.split(",")])
    routed: dict[str, float] = {}
    own: dict[str, float] = {}
    errors: dict[str, str] = {}
    for domain, listed in tasks.items():
        try:
            by_routing = evaluate_tasks(pipe, None, listed.split(","), manager, options)
            _write(output / f"{domain}.routed.json", by_routing)
            routed[domain] = score(by_routing, metrics.get(domain))
            by_own = evaluate_tasks(pipe, domain, listed.split(","), manager, options)
            _write(output / f"{domain}.own.json", by_own)
            own[domain] = score(by_own, metrics.get(domain))
        except Exception as error:  # the others go on
            errors[domain] = describe_error(error)
            print(f"{domain}: {errors[domain]}", file=sys.stderr)
    figures: Figures = {**normalised_scores(routed, own), "tasks": tasks, "limit": args.limit, "errors": errors}
    table = describe(figures)
    (output / "results.json").write_text(json.dumps(figures, indent=1).replace("NaN", "null") + "\n", encoding="utf-8")
    (output / "results.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 1 if errors else 0


def _write(path: Path, results: Mapping[str, Any]) -> None:
    text = json.dumps(results, indent=1, default=str, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _pairs(entries: Sequence[str], option: str) -> dict[str, str]:
    """What each domain is given, in the order of the entries."""
    pairs = {}
    for entry in entries:
        domain, _, name = entry.partition("=")
        if not domain or not name or domain in pairs:
            raise ValueError(f"{option} takes DOMAIN=NAME, each domain once; got {entries}.")
        pairs[domain] = name
    return pairs


def _load(router: str, experts: str | None) -> IR3DEModel:
    """The router, with the experts of a list instead of its own where there is one."""
    model: IR3DEModel = IR3DEModel.from_pretrained(router)
    if experts:
        names = model.config.expert_names
        model.config.set_experts(read_experts(experts))
        if model.config.expert_names != names:
            raise ValueError(f"{experts} must list the experts {names}, got {model.config.expert_names}.")
    return model


def describe(figures: Figures) -> str:
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
