"""A new router is tried beside the running one before it takes its place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from ir3de.samples_ir3de import Sample
from ir3de.scripts.data.rows import Row
from ir3de.scripts.metrics.measures import mean_recall

from .serving import Serving, served

logger = logging.getLogger(__name__)

_TRIED = ("Find the roots of x^2 - 5x + 6.", "Why did Rome fall?", "Sort a list in Python.")


def loaded_beside(running: Serving, load: Callable[[str], Any], revision: str) -> Serving:
    """A revision that shares the models which are in memory, and the budget for them, with the running one.

    Args:
        running ([`Serving`]): that serves.
        load (`Callable`): loads a revision, as a pipeline.
        revision (`str`): which one.

    Raises:
        Exception: whatever keeps it from being loaded.
    """
    router = load(revision)
    router.experts = running.router.experts.for_config(router.model.config)
    return served(router, revision)


def check_no_worse(new: Serving, running: Serving, samples: Sequence[Row] = (), tolerance: float = 0.02) -> None:
    """Tries a new router: it must route, keep most of what the running one has, and know the samples as well.

    Args:
        new ([`Serving`]): that shall serve.
        running ([`Serving`]): that serves.
        samples (`Sequence[Row]`): labelled prompts, instead of those that travel with the running router, or else with
            the new one.
        tolerance (`float`): accuracy on them that it may lose.

    Raises:
        ValueError: it is worse.
        Exception: whatever else keeps it from routing.
    """
    if running.experts and not new.experts:
        raise ValueError("it has no expert that answers")
    _check_kept("domains", new.router.model.config.domain_names, running.router.model.config.domain_names)
    _check_kept("experts that answer", list(new.experts), list(running.experts))
    try_routes(new.router)
    _compare(new.router, running.router, samples or samples_of(running.router) or samples_of(new.router), tolerance)


def _check_kept(what: str, new: Sequence[str], running: Sequence[str]) -> None:
    """Raises ValueError where a new router lacks most of what the running one has, which is rather a mistake than an
    edit.
    """
    kept = len(set(new) & set(running))
    if 2 * kept < len(running):
        had = len(running)
        raise ValueError(
            f"it has {kept} of the running one's {had} {what}; to serve it all the same, start anew with it"
        )


def _compare(new: Any, running: Any, samples: Sequence[Row | Sample], tolerance: float) -> None:
    """Raises ValueError where a new router is worse on the samples of the domains that both have."""
    known_now, known_then = (set(each.model.config.domain_names) for each in (new, running))
    samples = [sample for sample in samples if sample.domain in known_then]
    shared = [sample for sample in samples if sample.domain in known_now]
    if samples and not shared:
        raise ValueError("it knows none of the samples' domains")
    if not shared:
        return
    now, then = (_recognised(each, shared) for each in (new, running))
    if now < then - tolerance:
        raise ValueError(f"it is right for {100 * now:.1f} % of the samples, the running one for {100 * then:.1f} %")


def _recognised(router: Any, rows: Sequence[Row | Sample]) -> float:
    """How often a router recognises the domain of labelled prompts: the mean of the domains' recalls, 0 to 1."""
    right: dict[str, list[bool]] = {}
    for row, record in zip(rows, router([row.text for row in rows], generate=False), strict=True):
        best = record["domains"][0]["domain"] if "domains" in record else record["ranking"][0]["expert"]
        right.setdefault(row.domain, []).append(best == row.domain)
    return mean_recall({domain: sum(each) / len(each) for domain, each in right.items()})


def samples_of(router: Any) -> Sequence[Sample]:
    """The labelled prompts that travel with a router.

    Args:
        router ([`IR3DERoutingPipeline`]): whose they are.
    """
    try:
        samples: Sequence[Sample] = router.model.samples
    except ValueError as error:
        logger.warning("The samples of the router are not used: %s", error)
        return []
    return samples


def try_routes(router: Any) -> None:
    """Routes a few prompts, and asks the second opinion of them, if there is one: it loads its encoder when asked.

    Args:
        router ([`IR3DERoutingPipeline`]): to try.

    Raises:
        Exception: whatever keeps it from routing.
    """
    for text in _TRIED:
        router(text, generate=False)
    if router.second_opinion is not None:
        router.second_opinion.encode(list(_TRIED))


def is_passing(error: Exception) -> bool:
    """Whether network, disk or memory are at fault, and not what was loaded: then it may be better a moment later."""
    causes = list(_causes(error))
    return isinstance(causes[-1], OSError) or any(isinstance(cause, (HTTPError, MemoryError)) for cause in causes)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came of, and so on to the first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
