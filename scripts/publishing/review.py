"""What others propose for a router, and what taking it on changes."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import HfApi

from ir3de.atomic_save_ir3de import OUTCOMES_FOLDER, SECOND_FOLDER, STATISTICS_FOLDER
from ir3de.displacement_ir3de import Lost, Scorer, displaced
from ir3de.edits_ir3de import prompt_length, pull, read_statistics
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.names_ir3de import name_of_file
from ir3de.outcomes_ir3de import ONE, Ledger, read_contributions
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.data.rows import Row
from ir3de.scripts.metrics.accuracy import routing_accuracy
from ir3de.scripts.reports.words import Labels, table, to_left, width_of
from ir3de.specs_ir3de import ExpertSpec, nearest_name, served
from ir3de.statistics_ir3de import DomainStatistics, FeatureSpace

_MOST_BYTES = 8 << 30  # that are downloaded of a pull request
_MOST_CONFIG = 1 << 20
_MUCH = 0.05  # of a domain's recall, or of an expert's mean score
_MAY_BE_MUCH = 0.03  # by estimate, which is too low at times
_COMPARED = ("domain", "contributions", "prompts", "pull %", "length", "W moves %", "may lose %", "recall %")
_MARK = "  <-- moves by more than 5 points"
_MARK_ESTIMATE = "  <-- may lose more than 5 points"
_ESTIMATE = (
    "may lose: of prompts like a domain's own, estimated from its sums, and marked from 3 % on, as what does lose more"
    " than 5 points mostly is (docs/trust.md). Labelled prompts (--data) measure it."
)


class Proposal:
    """
    What a pull request proposes: files of statistics and of outcomes that are new or changed, and specs of new experts.

    Where the router has a second opinion, the same of that too. Nothing else is read, and no code of it runs. Of
    outcomes those count that the router does not have: a proposal cannot change what is there.

    Args:
        repo_id (`str`): of the router.
        number (`int`): of the pull request.
        model ([`IR3DEModel`]): the router as it is.
        head (`str`, *optional*): the commit that is expected at the pull request's head.

    Attributes:
        head (`str`): the commit that all is read at, whatever is pushed meanwhile.

    Raises:
        ValueError: its head is another, it proposes neither statistics nor outcomes, or they are too large, malformed,
            of another feature space, or of an expert that is unknown.
        OSError: there is no such pull request.
    """

    def __init__(self, repo_id: str, number: int, model: IR3DEModel, head: str | None = None) -> None:
        self.head = str(HfApi().model_info(repo_id, revision=f"refs/pr/{number}").sha)
        if head is not None and self.head != head:
            raise ValueError(
                f"Pull request {number} of {repo_id} is at {self.head} by now, not at {head}: look at it again with"
                " --dry-run."
            )
        specs = _read_specs(HfApi().hf_hub_download(repo_id, "config.json", revision=self.head))
        known = [*specs, *model.config.domain_names]  # for files that do not tell whose they are
        self.statistics = _proposed(repo_id, number, self.head, STATISTICS_FOLDER, model.space, known)
        self.outcomes = _proposed_outcomes(repo_id, number, self.head, model, specs)
        if not self.statistics and not self.outcomes:
            raise ValueError(
                f"Pull request {number} of {repo_id} proposes no statistics or outcomes: there is nothing to merge."
            )
        self.second_opinion = None
        if model.second_opinion is not None:
            folder = f"{SECOND_FOLDER}/{STATISTICS_FOLDER}"
            second = _proposed(repo_id, number, self.head, folder, model.second_opinion.space, known)
            self.second_opinion = SimpleNamespace(statistics=second)
        named = {**dict.fromkeys(self.statistics), **dict.fromkeys(self.outcomes.contributions)}
        self.config = SimpleNamespace(experts=[specs.get(name, {"name": name}) for name in named])


def _proposed(
    repo_id: str, number: int, revision: str, folder: str, space: FeatureSpace, known: Collection[str]
) -> dict[str, DomainStatistics]:
    """The statistics in a folder that are new or changed in a pull request, by domain."""
    paths = _changed(repo_id, number, revision, folder, known)
    return {
        name: read_statistics(HfApi().hf_hub_download(repo_id, path, revision=revision), name, space)
        for name, path in paths.items()
    }


def _proposed_outcomes(
    repo_id: str, number: int, revision: str, model: IR3DEModel, specs: Mapping[str, ExpertSpec]
) -> Ledger:
    """The outcomes of a pull request that a router does not have."""
    known = [*specs, *model.config.expert_names]
    found = {}
    for name, path in _changed(repo_id, number, revision, OUTCOMES_FOLDER, known).items():
        if name not in known:
            raise ValueError(
                f"Pull request {number} of {repo_id} brings outcomes of {name!r}, which is no expert of the router or"
                f" of the pull request.{nearest_name(name, known)}"
            )
        here = model.outcomes.contributions.get(name, {})
        parts = read_contributions(HfApi().hf_hub_download(repo_id, path, revision=revision))
        found[name] = {key: part for key, part in parts.items() if key not in here}
    return Ledger(found)


def _changed(repo_id: str, number: int, revision: str, folder: str, known: Collection[str]) -> dict[str, str]:
    """The files in a folder that are new or changed in a pull request, by the name that each is of.

    Raises:
        ValueError: they are too large together.
    """
    here = _files(repo_id, "main", folder)
    new = {path: info for path, info in _files(repo_id, revision, folder).items() if here.get(path) != info}
    total = sum(size for _, size in new.values())
    if total > _MOST_BYTES:
        raise ValueError(f"Pull request {number} has {total:,} bytes of {folder}, more than {_MOST_BYTES:,}.")
    return {name_of_file(Path(path).stem, known): path for path in new}


def _files(repo_id: str, revision: str, folder: str) -> dict[str, tuple[str, int]]:
    """Content id and size of the safetensors files in a folder of a revision, by path."""
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


@dataclass(frozen=True)
class Snapshot:
    """
    What a comparison needs to know of a router.

    Args:
        W (`dict[str, torch.Tensor]`): each domain's column.
        pull (`dict[str, float]`): each domain's share of A's trace.
        length (`dict[str, float]`): mean squared length of each domain's prompt rows.
        specs (`dict[str, ExpertSpec]`): of each expert.
        contributions (`dict[str, int]`): of each domain.
        prompts (`dict[str, int]`): of each domain, in its statistics.
        recalls (`dict[str, float]`): of the domains that there are labelled prompts of, 0 to 1.
        summary (`str`): of these prompts; empty where there are none.
        judged (`dict[str, tuple[float, float]]`): number and mean score of the outcomes of each expert that has some.
        best (`dict[str, str]`): who is expected to score most in each domain, where there are outcomes.
        statistics (`dict[str, DomainStatistics]`): of each domain.
        scorer ([`Scorer`]): what prompts are scored with.
    """

    W: dict[str, torch.Tensor]
    pull: dict[str, float]
    length: dict[str, float]
    specs: dict[str, ExpertSpec]
    contributions: dict[str, int]
    prompts: dict[str, int]
    recalls: dict[str, float]
    summary: str
    judged: dict[str, tuple[float, float]]
    best: dict[str, str]
    statistics: dict[str, DomainStatistics]
    scorer: Scorer

    @classmethod
    def of(cls, model: IR3DEModel, rows: Sequence[Row]) -> Snapshot:
        """A router as it is now.

        Args:
            model ([`IR3DEModel`]): the router.
            rows (`Sequence[Row]`): labelled prompts; those of domains without an expert are left out.
        """
        names = model.config.expert_names
        router = model.prompt_router if model.config.variant == "prompt" else model.token_router
        known = [row for row in rows if row.domain in names]
        recalls, summary = {}, ""
        if known:
            figures = routing_accuracy(IR3DERoutingPipeline(model, device="cpu"), known)
            recalls = {name: of_domain["recall"] for name, of_domain in figures["domains"].items()}
            summary = f"macro accuracy {figures['macro_accuracy']:.2%} of {figures['prompts']:,} prompts"
        return cls(
            W=dict(zip(model.config.domain_names, router.weight.detach().double().clone(), strict=True)),
            pull=pull(model.statistics, model.config.balance),
            length={name: prompt_length(domain) for name, domain in model.statistics.items()},
            specs={spec["name"]: spec for spec in model.config.specs},
            contributions={name: len(domain.contributions) for name, domain in model.statistics.items()},
            prompts={name: domain.rows("prompts") for name, domain in model.statistics.items()},
            recalls=recalls,
            summary=summary,
            judged=_judged(model),
            best=_best(model),
            statistics=dict(model.statistics),
            scorer=model.scorer,
        )

    def lost(self, after: Snapshot) -> dict[str, Lost]:
        """What each domain is estimated to lose of its prompts until another snapshot."""
        return displaced(self.statistics, self.scorer, after.scorer)


def _judged(model: IR3DEModel) -> dict[str, tuple[float, float]]:
    names = sorted(model.outcomes.contributions)
    totals = model.outcomes.sums(sorted(model.outcomes.domains), names).sum(axis=0)
    return {name: (float(n) / ONE, float(score / n)) for name, (n, score) in zip(names, totals[:, :2], strict=True)}


def _best(model: IR3DEModel) -> dict[str, str]:
    panel = model.panel
    if panel.scores is None or panel.outcomes is None:
        return {}
    columns = panel.scores.argmax(dim=1).tolist()
    return {name: panel.experts[column] for name, column in zip(panel.domains, columns, strict=True)}


def compare(before: Snapshot, after: Snapshot) -> str:
    """Two snapshots side by side: contributions, prompts, pull, mean squared length of prompt rows, how far W moved,
    what a domain may lose of its prompts, recall where there are data, and who will answer; then each expert's
    outcomes, and who is best where. What moves by more than 5 points is marked, and a domain that another expert
    answers.
    """
    names, lost = sorted(before.W.keys() | after.W.keys()), before.lost(after)
    labels, rows, marks = Labels.of(names), [], [""]
    for name, label in zip(names, labels.rows, strict=True):
        contributions = _change(before.contributions.get(name), after.contributions.get(name), "{}")
        prompts = _change(before.prompts.get(name), after.prompts.get(name), "{:,}")
        share = _change(before.pull.get(name), after.pull.get(name), "{:.1%}").replace("%", "")
        recall = _change(before.recalls.get(name), after.recalls.get(name), "{:.1%}").replace("%", "")
        moved = _moved(before.W.get(name), after.W.get(name))
        length = _change(before.length.get(name), after.length.get(name), "{:.4g}")
        less = _percent(lost[name].unseen) if name in lost else ""
        rows.append([label, contributions, prompts, share, length, moved, less, recall])
        marks.append(_mark(before.recalls.get(name), after.recalls.get(name), lost.get(name)))
    lines = [f"{line}{mark}".rstrip() for line, mark in zip(table(_COMPARED, rows, room=None), marks, strict=True)]
    lines += labels.legend
    if any(of_domain.unseen for of_domain in lost.values()):  # not where only outcomes are new
        lines.append(_ESTIMATE)
    for name, spec in sorted(after.specs.items()):
        if before.specs.get(name) != spec:
            lines.append(f"who answers for {name}: {json.dumps(spec, sort_keys=True)}")  # ASCII, in one line
    lines += _outcomes_compared(before, after)
    for title, side in (("before", before), ("after", after)):
        if side.summary:
            lines.append(f"{title}: {side.summary}")
    return "\n".join(lines)


def accumulated(measured: Snapshot, after: Snapshot, joined: int) -> str:
    """What the contributions of others cost together: each may take little, and many much.

    Args:
        measured ([`Snapshot`]): without the contributions that joined since the router was measured.
        after ([`Snapshot`]): with them all, and with what is to join now.
        joined (`int`): how many had joined before.
    """
    lines = [f"together with {joined} contributions that joined since the router was measured:"]
    found = measured.lost(after)
    width = max(map(width_of, found), default=0)
    for name, lost in sorted(found.items()):
        to = f", most of it to {lost.to}" if lost.unseen > _MAY_BE_MUCH else ""
        mark = _mark(measured.recalls.get(name), after.recalls.get(name), lost)
        recall = _change(measured.recalls.get(name), after.recalls.get(name), "{:.1%}")
        lines.append(
            f"{to_left(name, width)} may lose {_percent(lost.unseen)} %{to}{recall and f', recall {recall}'}{mark}"
        )
    return "\n".join(lines)


def _mark(old: float | None, new: float | None, lost: Lost | None) -> str:
    """What to say of a domain whose recall moves much, by labelled prompts or by estimate."""
    if old is not None and new is not None and abs(new - old) > _MUCH:
        return _MARK
    return _MARK_ESTIMATE if lost is not None and not lost.unseen <= _MAY_BE_MUCH else ""  # NaN is too much


def _percent(share: float) -> str:
    """Of what may be lost; what may be won is not."""
    return f"{100 * max(share, 0.0):.1f}" if math.isfinite(share) else "?"


def _outcomes_compared(before: Snapshot, after: Snapshot) -> list[str]:
    """What is new in the outcomes, a line an expert, and a line a domain that another expert is best in."""
    lines = []
    for name in sorted(before.judged.keys() | after.judged.keys()):
        old, new = before.judged.get(name), after.judged.get(name)
        if old != new:
            number = _change(old and old[0], new and new[0], "{:,.0f}")
            score = _change(old and old[1], new and new[1], "{:.3f}")
            marked = old is not None and new is not None and abs(new[1] - old[1]) > _MUCH
            lines.append(f"outcomes of {name}: {number} judged, mean score {score}{_MARK if marked else ''}")
    for domain in sorted(after.best):
        old_best, new_best = before.best.get(domain), after.best[domain]
        # Without outcomes a domain is answered by those that serve it.
        known = [old_best] if old_best else [name for name, spec in before.specs.items() if domain in served(spec)]
        if domain in before.W and new_best not in known:
            lines.append(f"best in {domain}: {', '.join(known) or '-'} > {new_best}  <-- another expert")
    return lines


def _moved(old: torch.Tensor | None, new: torch.Tensor | None) -> str:
    """How far an expert's column of W moved, in percent of its length."""
    if old is None or new is None:
        return ""
    return f"{100 * float((new - old).norm() / old.norm()):.2f}"


def _change(old: float | None, new: float | None, form: str) -> str:
    """A value before and after, or one where they read the same."""
    if old is None and new is None:
        return ""
    cells = ["-" if value is None else form.format(value) for value in (old, new)]
    return cells[0] if cells[0] == cells[1] else " > ".join(cells)
