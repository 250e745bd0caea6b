"""What others propose for a router, and what taking it on changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import HfApi

from ir3de.edits_ir3de import pull, read_statistics
from ir3de.files_ir3de import SECOND_FOLDER
from ir3de.modeling_ir3de import STATISTICS_FOLDER, IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.data.rows import Row
from ir3de.scripts.metrics.accuracy import routing_accuracy
from ir3de.specs_ir3de import check_expert_name
from ir3de.statistics_ir3de import DomainStatistics, FeatureSpace

_MOST_BYTES = 8 << 30  # that are downloaded of a pull request
_MOST_CONFIG = 1 << 20


class Proposal:
    """
    The experts that a pull request proposes: statistics files that are new or changed, and specs of new experts.

    Where the router has a second opinion, the same of that too. Nothing else is read, and no code of it runs.

    Args:
        repo_id (`str`): of the router.
        number (`int`): of the pull request.
        model ([`IR3DEModel`]): the router as it is.

    Raises:
        ValueError: it proposes no statistics, or they are too large, malformed or of another feature space.
        OSError: there is no such pull request.
    """

    def __init__(self, repo_id: str, number: int, model: IR3DEModel) -> None:
        self.statistics = _proposed(repo_id, number, STATISTICS_FOLDER, model.space)
        if not self.statistics:
            raise ValueError(f"Pull request {number} of {repo_id} proposes no statistics: there is nothing to merge.")
        self.second_opinion = None
        if model.second_opinion is not None:
            second = _proposed(repo_id, number, f"{SECOND_FOLDER}/{STATISTICS_FOLDER}", model.second_opinion.space)
            self.second_opinion = SimpleNamespace(statistics=second)
        specs = _read_specs(HfApi().hf_hub_download(repo_id, "config.json", revision=f"refs/pr/{number}"))
        self.config = SimpleNamespace(experts=[specs.get(name, {"name": name}) for name in self.statistics])


def _proposed(repo_id: str, number: int, folder: str, space: FeatureSpace) -> dict[str, DomainStatistics]:
    """The statistics in a folder that are new or changed in a pull request, by domain."""
    revision, here = f"refs/pr/{number}", _statistics_files(repo_id, "main", folder)
    new = {path: info for path, info in _statistics_files(repo_id, revision, folder).items() if here.get(path) != info}
    total = sum(size for _, size in new.values())
    if total > _MOST_BYTES:
        raise ValueError(f"Pull request {number} has {total:,} bytes of statistics, more than {_MOST_BYTES:,}.")
    paths = {check_expert_name(Path(path).stem): path for path in new}
    return {
        name: read_statistics(HfApi().hf_hub_download(repo_id, path, revision=revision), name, space)
        for name, path in paths.items()
    }


def _statistics_files(repo_id: str, revision: str, folder: str) -> dict[str, tuple[str, int]]:
    """Content id and size of the statistics files in a folder of a revision, by path."""
    info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    return {
        file.rfilename: (str(file.blob_id), int(file.size or 0))
        for file in info.siblings or []
        if Path(file.rfilename).parent == Path(folder) and file.rfilename.endswith(".safetensors")
    }


def _read_specs(path: str) -> dict[str, Any]:
    """The experts' specs in a stranger's config.json, by name; they are checked when they are taken on."""
    if Path(path).stat().st_size > _MOST_CONFIG:
        raise ValueError(f"The config.json of the pull request has more than {_MOST_CONFIG:,} bytes.")
    try:
        experts = json.loads(Path(path).read_text(encoding="utf-8"))["experts"]
        return {expert["name"]: expert for expert in experts}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"The config.json of the pull request has no readable experts ({error!r}).") from error


def snapshot(model: IR3DEModel, rows: Sequence[Row]) -> dict[str, Any]:
    """What a comparison needs to know of a router.

    Args:
        model ([`IR3DEModel`]): the router.
        rows (`Sequence[Row]`): labelled prompts; those of domains without an expert are left out.
    """
    names = model.config.expert_names
    router = model.prompt_router if model.config.variant == "prompt" else model.token_router
    known = [row for row in rows if row.domain in names]
    return {
        "W": dict(zip(names, router.weight.detach().double().clone(), strict=True)),
        "pull": pull(model.statistics, model.config.balance),
        "contributions": {name: len(domain.contributions) for name, domain in model.statistics.items()},
        "prompts": {name: domain.rows("prompts") for name, domain in model.statistics.items()},
        "accuracy": routing_accuracy(IR3DERoutingPipeline(model, device="cpu"), known) if known else None,
    }


def compare(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Two snapshots side by side: contributions, prompts, pull, how far W moved, and recall where there are data."""
    lines = [f"{'expert':<24}{'contributions':>16}{'prompts':>20}{'pull %':>16}{'W moves %':>11}{'recall %':>18}"]
    for name in sorted(before["W"].keys() | after["W"].keys()):
        old, new = before["W"].get(name), after["W"].get(name)
        moved = "" if old is None or new is None else f"{100 * float((new - old).norm() / old.norm()):.2f}"
        recalls = [_recall(side, name) for side in (before, after)]
        cells = [
            _change(before["contributions"].get(name), after["contributions"].get(name), "{}"),
            _change(before["prompts"].get(name), after["prompts"].get(name), "{:,}"),
            _change(before["pull"].get(name), after["pull"].get(name), "{:.1%}"),
        ]
        lines.append(
            f"{name:<24}{cells[0]:>16}{cells[1]:>20}{cells[2].replace('%', ''):>16}{moved:>11}"
            f"{_change(*recalls, '{:.1%}').replace('%', ''):>18}"
        )
    for title, side in (("before", before), ("after", after)):
        if side["accuracy"]:
            figures = side["accuracy"]
            lines.append(f"{title}: macro accuracy {figures['macro_accuracy']:.2%} of {figures['prompts']:,} prompts")
    return "\n".join(lines)


def _recall(side: dict[str, Any], name: str) -> float | None:
    domains = (side["accuracy"] or {}).get("domains", {})
    return domains[name]["recall"] if name in domains else None


def _change(old: Any, new: Any, form: str) -> str:
    if old is None and new is None:
        return ""
    cells = ["-" if value is None else form.format(value) for value in (old, new)]
    return cells[0] if cells[0] == cells[1] else " > ".join(cells)
