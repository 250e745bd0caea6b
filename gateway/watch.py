"""A new revision of the router takes the running one's place between two requests, if it is no worse."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ir3de.scripts.data.rows import Row

from .breaker import Breaker, BreakerOptions
from .gateway import Gateway
from .loading import Origin
from .revisions import Revisions
from .serving import Serving, prepare_in_background
from .trial import check_no_worse, is_passing, loaded_beside, samples_of

logger = logging.getLogger(__name__)

_HEED_SECONDS = 0.25  # between two looks at what other worker processes say
_MOST_SECONDS = 600.0  # until a revision that could not be loaded is tried again


class Watched(NamedTuple):
    """
    What is watched, and how.

    Args:
        current (`Callable`): gives the present revision.
        load (`Callable`): loads a revision, as a pipeline.
        seconds (`float`): between two looks.
        samples (`Sequence`): labelled prompts that a new router is tried on, instead of those that travel with it.
        tolerance (`float`): accuracy on them that it may lose.
        revisions (`Path`, *optional*): a file in which worker processes tell each other what is not to be served.
        recall (`Callable`, *optional*): loads an earlier revision, where that can still be had.
    """

    current: Callable[[], str]
    load: Callable[[str], Any]
    seconds: float = 60.0
    samples: Sequence[Row] = ()
    tolerance: float = 0.02
    revisions: Path | None = None
    recall: Callable[[str], Any] | None = None


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
        self._revisions = Revisions(watched.revisions)
        self._before: Serving | None = None
        self._failed = ""  # the revision that could not be loaded
        self._again = self._fresh_breaker()
        self._leaving = False
        if not watched.samples:
            samples_of(gateway.serving.router)  # read now: a folder may hold those of another router later

    def _fresh_breaker(self) -> Breaker:
        seconds = self._watched.seconds
        return Breaker(BreakerOptions(failures=1, seconds=seconds, most_seconds=max(seconds, _MOST_SECONDS)))

    async def run(self) -> None:
        """Looks for a new revision, and at what other worker processes say, until it is cancelled."""
        await asyncio.gather(
            _again_and_again(self.look, self._watched.seconds), _again_and_again(self.heed, _HEED_SECONDS)
        )

    async def look(self) -> None:
        """Takes a new revision if there is one and it is no worse."""
        gateway = self._gateway
        await self.heed()
        revision = await asyncio.to_thread(self._watched.current)
        if revision == gateway.serving.revision or self._revisions.instead(revision) is not None:
            return
        if revision != self._failed:
            self._failed, self._again = revision, self._fresh_breaker()
        if not self._again.admit():
            return
        try:
            new = await asyncio.to_thread(self._tried, gateway.serving, revision)
        except Exception as error:
            if is_passing(error):
                self._again.failed()
                gateway.metrics.swapped("failed")
                logger.warning("Revision %s of the router could not be tried, and will be: %s", revision, _plain(error))
                return
            self._again.succeeded()
            self._revisions.refuse(revision, gateway.serving.revision)
            gateway.metrics.swapped("refused")
            logger.error("Revision %s of the router is refused: %s", revision, _plain(error))
            return
        self._again.succeeded()
        self._revisions.read()
        if self._revisions.instead(revision) is None:  # while it was tried another process may have refused it
            self._revisions.took(revision, gateway.serving.revision)
            self._swap(new, "taken")

    async def heed(self) -> None:
        """Leaves a revision that another worker process has taken back or refused."""
        self._revisions.read()
        bad = self._gateway.serving.revision
        instead = self._revisions.instead(bad)
        if instead is not None:
            await self._go_back(bad, instead)

    async def roll_back(self) -> str:
        """Takes the router before the present one back, and leaves the present revision alone from now on.

        Returns:
            `str`: the revision that serves now.

        Raises:
            LookupError: there was none before.
            OSError: it cannot be loaded just now; that is tried again.
        """
        self._revisions.read()
        bad = self._gateway.serving.revision
        before = self._before.revision if self._before is not None else self._revisions.before(bad)
        if before is None:
            raise LookupError("no router served before this one")
        self._revisions.took_back(bad, before)
        await self._go_back(bad, before)
        if self._watched.revisions is not None:
            await asyncio.sleep(2 * _HEED_SECONDS)  # who is told that it is done finds all processes done
        return before

    async def _go_back(self, bad: str, revision: str) -> None:
        """Serves an earlier revision again, from memory or loaded anew; where it cannot be had, this process ends."""
        kept, recall = self._before, self._watched.recall
        if kept is not None and (kept.revision == revision or recall is None):
            self._swap(kept, "taken back")
        elif recall is not None:
            new = await asyncio.to_thread(loaded_beside, self._gateway.serving, recall, revision)
            if self._gateway.serving.revision == bad:  # else a newer one has come meanwhile
                self._swap(new, "taken back")
        elif not self._leaving:
            self._leaving = True
            logger.error(
                "Revision %s of the router is not to be served, and this process, which started with it, has no other:"
                " it ends, and the one in its place waits until the folder changes.",
                bad,
            )
            signal.raise_signal(signal.SIGTERM)  # requests that have begun are answered

    def _swap(self, new: Serving, outcome: str) -> None:
        """Requests that have begun keep their router; the next one gets the new one, which is complete."""
        before = self._gateway.serving
        self._gateway.serving = new
        self._before = before if outcome == "taken" else None
        self._gateway.metrics.swapped(outcome.replace(" ", "_"))
        logger.warning("Revision %s of the router serves now (%s), after %s", new.revision, outcome, before.revision)

    def _tried(self, running: Serving, revision: str) -> Serving:
        """A revision, loaded and no worse than the running one.

        Raises:
            Exception: it cannot be loaded or route, or is worse.
        """
        watched = self._watched
        new = loaded_beside(running, watched.load, revision)
        check_no_worse(new, running, watched.samples, watched.tolerance)
        prepare_in_background(new, self._gateway.settings.preload)
        return new


async def _again_and_again(work: Callable[[], Any], seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception as error:  # of the network, say: the next time it may be there
            logger.warning("Could not look for a new router: %s", _plain(error))


def first_revision(origin: Origin, path: Path | None) -> str:
    """The revision that a process starts with: the present one, unless other worker processes have refused it or taken
    it back. A folder holds no other, so that its next change is waited for.

    Args:
        origin ([`Origin`]): of the router.
        path (`Path`, *optional*): the file in which they tell each other.

    Raises:
        OSError: it cannot be reached.
    """
    revisions = Revisions(path)
    allowed = _allowed(origin, revisions)
    if allowed is not None:
        return allowed
    logger.warning("The router's present revision is not to be served: this process waits until its folder changes")
    while (allowed := _allowed(origin, revisions)) is None:
        time.sleep(_HEED_SECONDS)
    return allowed


def _allowed(origin: Origin, revisions: Revisions) -> str | None:
    """The present revision, or on the Hub what is served in its place; None where a folder has no other."""
    revisions.read()
    current = origin.current()
    allowed = revisions.allowed(current)
    return allowed if allowed == current or not origin.is_folder else None


def _plain(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
