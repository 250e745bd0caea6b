"""Judging experts by a task of lm-eval: its prompts, and what its metric says of each answer.

The harness does its items a portion at a time, and a portion's rows are written when it is done: its seconds are shared
out evenly among its items.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ir3de.experts_ir3de import describe_error
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.judging.asking import Judged, Row, answered, measured, write_down
from ir3de.scripts.metrics.tasks import TaskOptions, evaluate_tasks
from ir3de.specs_ir3de import is_remote

PORTION = 16  # items


class _Job(NamedTuple):
    """Items of a task that an expert does at once."""

    expert: str
    task: Any
    items: list[int]


def judge_by_task(
    pipe: IR3DERoutingPipeline,
    experts: Sequence[str],
    name: str,
    manager: Any,
    options: TaskOptions,
    metric: str | None,
    count_tokens: Callable[[str], int],
    output: Path,
) -> Judged:
    """Lets experts do a task's items, and appends a row an item, with `task` and `item` beside the outcome.

    Args:
        pipe ([`IR3DERoutingPipeline`]): whose experts are asked.
        experts (`Sequence[str]`): their names.
        name (`str`): of the task, or of a group of tasks.
        manager (`TaskManager`): that knows it.
        options ([`TaskOptions`]): how.
        metric (`str`, *optional*): such as `exact_match,strict-match`; by default the task's first.
        count_tokens (`Callable`): tokens of a text, for experts behind servers.
        output (`Path`): JSON Lines of outcomes, made if missing, else gone on with.

    Raises:
        ValueError: there is no such task, its metric says nothing of single items, or the output is not of outcomes.
    """
    answered(output)  # takes out a row that was cut
    known = _known(output)
    jobs, number, done = [], 0, 0
    for task in tasks_of(name, manager):
        items = range(len(task.eval_docs))[: options.limit]
        for start in range(0, len(items), PORTION):
            portion = list(items[start : start + PORTION])
            for expert in experts:
                rest = [item for item in portion if (expert, task.config.task, item) not in known]
                number, done = number + len(rest), done + len(portion) - len(rest)
                if rest:
                    jobs.append(_Job(expert, task, rest))
    rows = (row for job in jobs for row in _rows(job, pipe, manager, options, metric, count_tokens))
    return write_down(rows, number, done, output)


def tasks_of(name: str, manager: Any) -> list[Any]:
    """The tasks of a name, several where it is a group's.

    Raises:
        ValueError: there is no such task.
    """
    if name not in manager.all_tasks:
        raise ValueError(
            f"--by {name!r} is neither a way to score answers nor a task that lm-eval knows; files of further tasks go"
            " into --include-path."
        )
    return list(manager.load([name])["tasks"].values())


def _known(output: Path) -> set[tuple[str, str, int]]:
    """Expert, task and item of the rows that are in a file."""
    if not output.is_file():
        return set()
    with output.open(encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return {(row["expert"], row["task"], row["item"]) for row in rows if "task" in row and "item" in row}


def _rows(
    job: _Job,
    pipe: IR3DERoutingPipeline,
    manager: Any,
    options: TaskOptions,
    metric: str | None,
    count_tokens: Callable[[str], int],
) -> list[Row]:
    """What comes of a job: a row an item."""
    name, started = job.task.config.task, time.perf_counter()
    try:
        found = evaluate_tasks(pipe, job.expert, [job.task], manager, options, {name: job.items})
        seconds = (time.perf_counter() - started) / len(job.items)
        spec = pipe.experts.spec(job.expert)
        tokens = count_tokens if is_remote(spec) else pipe.experts.source(job.expert).tokens
        return [
            {
                "text": _prompt(sample),
                "expert": job.expert,
                **measured(spec, seconds, *_counted(sample, tokens)),
                "task": name,
                "item": int(sample["doc_id"]),
                "score": score_of(sample, metric),
            }
            for sample in _of_metric(found["samples"][name], metric)
        ]
    except Exception as error:  # the rest goes on
        failed = {"expert": job.expert, "task": name, "error": describe_error(error)}
        return [{**failed, "item": item} for item in job.items]


def _prompt(sample: Mapping[str, Any]) -> str:
    """What an item asks; where that is nothing, the text that is read."""
    texts = [part for part in sample["arguments"][0] if isinstance(part, str)]
    return next((text for text in texts if text.strip()), "")


def _of_metric(samples: Sequence[Mapping[str, Any]], metric: str | None) -> list[Mapping[str, Any]]:
    """A sample an item: of the metric's filter of answers, or of the first."""
    chosen = metric.partition(",")[2] if metric else ""
    chosen = chosen or samples[0]["filter"]
    return [sample for sample in samples if sample["filter"] == chosen]


def score_of(sample: Mapping[str, Any], metric: str | None) -> float:
    """What a task's metric says of an item.

    Raises:
        ValueError: it does not say, or not from 0 to 1.
    """
    names = sample["metrics"]
    name = metric.partition(",")[0] if metric else next(iter(names), "")
    value = sample.get(name) if name in names else None
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(
            f"The metric {name!r} says {value!r} of an item, which is no score from 0 to 1; the task has"
            f" {', '.join(names) or 'none'}: choose with --metric."
        )
    return float(value)


def _counted(sample: Mapping[str, Any], tokens: Callable[[str], int]) -> tuple[int, int]:
    """Tokens that were read and written for an item."""
    read = written = 0
    for arguments, responses in zip(sample["arguments"], sample["resps"], strict=True):
        read += sum(tokens(part) for part in arguments if isinstance(part, str))
        written += sum(tokens(part) for part in responses if isinstance(part, str))
    return read, written
