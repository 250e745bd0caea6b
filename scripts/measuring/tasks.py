"""Tasks of lm-eval by routing and by each domain's own expert, and how close routing comes."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ir3de.card_ir3de import markdown_table
from ir3de.experts_ir3de import describe_error
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.data.experts import read_experts
from ir3de.scripts.metrics.normalised import NormalisedScores, normalised_scores
from ir3de.scripts.metrics.tasks import TaskOptions, evaluate_tasks, score, task_manager


class Figures(NormalisedScores):
    """What `results.json` holds: the `tasks` of each domain, the `limit` of items, and by domain the `errors` too."""

    tasks: dict[str, str]
    limit: int | None
    errors: dict[str, str]


def measure_tasks(
    pipe: IR3DERoutingPipeline,
    tasks: Mapping[str, str],
    metrics: Mapping[str, str],
    options: TaskOptions,
    output: Path,
    include_path: str | None = None,
) -> Figures:
    """Evaluates each domain's tasks twice, by routing and by its own expert; a task that fails does not stop the rest.

    Args:
        pipe ([`IR3DERoutingPipeline`]): that answers.
        tasks (`Mapping[str, str]`): names of tasks with commas between, by domain.
        metrics (`Mapping[str, str]`): by domain; by default the first that lm-eval reports.
        options ([`TaskOptions`]): how.
        output (`Path`): folder for what lm-eval reports, `results.json` and `results.md`.
        include_path (`str`, *optional*): folder with further task files.

    Raises:
        ValueError: a domain has no expert.
    """
    names = pipe.model.config.expert_names
    unknown = sorted((tasks.keys() | metrics.keys()) - set(names))
    if unknown:
        raise ValueError(f"--task and --metric name domains without an expert: {unknown}. Experts: {names}.")
    output.mkdir(parents=True, exist_ok=True)
    manager = task_manager(include_path, [task for listed in tasks.values() for task in listed.split(",")])
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
    scores = normalised_scores(routed, own)
    figures: Figures = {**scores, "tasks": dict(tasks), "limit": options.limit, "errors": errors}
    (output / "results.json").write_text(json.dumps(figures, indent=1).replace("NaN", "null") + "\n", encoding="utf-8")
    (output / "results.md").write_text(describe(figures) + "\n", encoding="utf-8")
    return figures


def _write(path: Path, results: Mapping[str, Any]) -> None:
    text = json.dumps(results, indent=1, default=str, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def load_router(router: str, experts: str | None) -> IR3DEModel:
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
