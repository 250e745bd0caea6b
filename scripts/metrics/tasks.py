"""Tasks of lm-eval, the harness that the paper used, as a routed pipeline or one of its experts does them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ir3de.pipeline_ir3de import IR3DERoutingPipeline


@dataclass(frozen=True)
class TaskOptions:
    """
    How tasks are evaluated.

    Args:
        limit (`int`, *optional*): items of each task.
        num_fewshot (`int`, *optional*): examples in each prompt, by default the task's own number.
        batch_size (`int`): prompts that an expert answers at once.
        allow_code (`bool`): run code that experts write.
    """

    limit: int | None
    num_fewshot: int | None
    batch_size: int
    allow_code: bool


def task_manager(folder: str | None, tasks: Sequence[str]) -> Any:
    """What knows the tasks; the thousands that come with lm-eval are read only where the folder's are not enough."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(f'Tasks need lm-eval ({error}): `pip install "ir3de[evaluation]"`.') from error
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    return manager if set(tasks) <= set(manager.all_tasks) else TaskManager(include_path=folder)


def evaluate_tasks(
    pipe: IR3DERoutingPipeline,
    expert: str | None,
    tasks: Sequence[str],
    manager: Any,
    options: TaskOptions,
    items: Mapping[str, list[int]] | None = None,
) -> dict[str, Any]:
    """Evaluates tasks with lm-eval.

    Args:
        pipe ([`IR3DERoutingPipeline`]): that answers.
        expert (`str`, *optional*): that answers everything, instead of the one that is routed to.
        tasks (`list[str]`): names of tasks.
        manager (`TaskManager`): that knows them.
        options ([`TaskOptions`]): how.
        items (`Mapping[str, list[int]]`, *optional*): of each task, instead of all or of `options.limit`.

    Returns:
        `dict`: the part of lm-eval's results that is kept.
    """
    from lm_eval import simple_evaluate

    from ir3de.scripts.routers.harness import RoutedLM

    found = simple_evaluate(
        model=RoutedLM(pipe, expert, options.batch_size),
        tasks=list(tasks),
        num_fewshot=options.num_fewshot,
        limit=options.limit if items is None else None,
        samples=None if items is None else dict(items),
        task_manager=manager,
        confirm_run_unsafe_code=options.allow_code,
        bootstrap_iters=0,
    )
    kept = ("results", "versions", "n-samples", "group_subtasks", "samples")
    return {key: found[key] for key in kept if key in found}


def score(results: Mapping[str, Any], metric: str | None) -> float:
    """The mean over tasks of a metric, by default each task's first.

    Raises:
        ValueError: a task does not have the metric.
    """
    values = []
    groups = {name for name, members in results.get("group_subtasks", {}).items() if members}
    for task, figures in results["results"].items():
        if task in groups:
            continue
        numbers = {}
        for key, value in figures.items():  # a metric's key is its name, a comma and a filter of answers
            if isinstance(value, (int, float)) and "," in key and "_stderr," not in key:
                numbers[key] = value
        name = metric or next(iter(numbers), None)
        if name not in numbers:
            raise ValueError(
                f"{task} has no metric {name!r}, but {', '.join(numbers) or 'none'}: choose with --metric."
            )
        values.append(float(numbers[name]))
    return sum(values) / len(values)
