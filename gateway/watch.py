"""A new revision of the router takes the running one's place between two requests, if it is no worse."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ir3de.scripts.data.rows import Row
from ir3de.scripts.metrics.measures import mean_recall

from .gateway import Gateway
from .serving import Serving, prepare_in_background, served

logger = logging.getLogger(__name__)

_TRIED = ("Find the roots of x^2 - 5x + 6.", "Why did Rome fall?", "Sort a list in Python.")


class Watched(NamedTuple):
    """
    What is watched, and how.

    Args:
        current (`Callable`): gives the present revision.
        load (`Callable`): loads a revision, as a pipeline.
        seconds (`float`): between two looks.
        samples (`Sequence[Row]`): labelled prompts that a new router is tried on.
        tolerance (`float`): accuracy on them that it may lose.
        refused (`Path`, *optional*): a file of revisions not to be served, which worker processes share.
    """

    current: Callable[[], str]
    load: Callable[[str], Any]
    seconds: float = 60.0
    samples: Sequence[Row] = ()
    tolerance: float = 0.02
    refused: Path | None = None


class Watch:
    """
    Keeps a gateway's router current.

    Args:
        gateway ([`Gateway`]): whose router it is.
        watched ([`Watched`]): where new ones come from.
    """

    def __init__(self, gateway: Gateway, watched: Watched) -> None:
        self._gateway = gateway
        self._watched = watched
        self._refused: set[str] = set()
        self._before: Serving | None = None

    async def run(self) -> None:
        """Looks for a new revision again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(self._watched.seconds)
            try:
                await self.look()
            except Exception as error:  # of the network, say: the next look may see more
                logger.warning("Could not look for a new router: %s", type(error).__name__)

    async def look(self) -> None:
        """Takes a new revision if there is one and it is no worse."""
        gateway = self._gateway
        self._read_refused()
        if gateway.serving.revision in self._refused and self._before is not None:
            self._swap(self._before, "taken back")
        revision = await asyncio.to_thread(self._watched.current)
        if revision == gateway.serving.revision or revision in self._refused:
            return
        try:
            new = await asyncio.to_thread(self._tried, revision)
        except Exception as error:
            self._refused.add(revision)
            gateway.metrics.swapped("refused")
            logger.error("Revision %s of the router is refused: %s", revision, _plain(error))
            return
        self._swap(new, "taken")

    def roll_back(self) -> str:
        """Takes the router before the present one back, and leaves the present revision alone from now on.

        Returns:
            `str`: the revision that serves now.

        Raises:
            LookupError: there was none before.
        """
        if self._before is None:
            raise LookupError("no router served before this one")
        bad = self._gateway.serving.revision
        self._refused.add(bad)
        if self._watched.refused is not None:
            with self._watched.refused.open("a", encoding="utf-8") as file:
                file.write(bad + "\n")
        self._swap(self._before, "taken back")
        return self._gateway.serving.revision

    def _swap(self, new: Serving, outcome: str) -> None:
        """Requests that have begun keep their router; the next one gets the new one, which is complete."""
        before = self._gateway.serving
        self._gateway.serving = new
        self._before = before if outcome == "taken" else None
        self._gateway.metrics.swapped(outcome.replace(" ", "_"))
        logger.warning("Revision %s of the router serves now (%s), after %s", new.revision, outcome, before.revision)

    def _read_refused(self) -> None:
        if self._watched.refused is not None and self._watched.refused.exists():
            self._refused.update(self._watched.refused.read_text(encoding="utf-8").split())

    def _tried(self, revision: str) -> Serving:
        """A revision, loaded and tried.

        Raises:
            Exception: it cannot be loaded or route, or is worse than the running one.
        """
        running = self._gateway.serving
        router = self._watched.load(revision)
        # The two share the models that are in memory, and the budget for them.
        router.experts = running.router.experts.for_config(router.model.config)
        new = served(router, revision)
        if running.experts and not new.experts:
            raise ValueError("it has no expert that answers")
        try_routes(router)
        self._compare(router, running.router)
        prepare_in_background(new, self._gateway.settings.preload)
        return new

    def _compare(self, new: Any, running: Any) -> None:
        """Raises ValueError where a new router is worse on the samples of the domains that both have."""
        both = set(new.model.config.domain_names) & set(running.model.config.domain_names)
        rows = [row for row in self._watched.samples if row.domain in both]
        if self._watched.samples and not rows:
            raise ValueError("it knows none of the samples' domains")
        if not rows:
            return
        now, then = (_recognised(each, rows) for each in (new, running))
        if now < then - self._watched.tolerance:
            said = f"it is right for {100 * now:.1f} % of the samples"
            raise ValueError(f"{said}, the running one for {100 * then:.1f} %")


def _recognised(router: Any, rows: Sequence[Row]) -> float:
    """How often a router recognises the domain of labelled prompts: the mean of the domains' recalls, 0 to 1."""
    right: dict[str, list[bool]] = {}
    for row, record in zip(rows, router([row.text for row in rows], generate=False), strict=True):
        best = record["domains"][0]["domain"] if "domains" in record else record["ranking"][0]["expert"]
        right.setdefault(row.domain, []).append(best == row.domain)
    return mean_recall({domain: sum(each) / len(each) for domain, each in right.items()})


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


def _plain(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
