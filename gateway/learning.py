"""The router learns while it serves: from this server's store, and from what other servers say in an exchange."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from ir3de.scripts.publishing.from_store import bring
from ir3de.traffic.apart import remade_apart
from ir3de.traffic.errors import ExchangeRefused, StoreUnavailable
from ir3de.traffic.exchange import Exchange
from ir3de.traffic.remade import Remade
from ir3de.traffic.repository import Repository
from ir3de.traffic.store import Store

from .gateway import Gateway
from .trial import try_routes

logger = logging.getLogger(__name__)


class Learning:
    """
    Exchanges outcomes again and again, and gives the router what all servers know.

    Args:
        gateway ([`Gateway`]): whose router it is; it has a store.
        place ([`Repository`]): where outcomes are exchanged.
        seconds (`float`): between two rounds.
        count (`Callable`): makes a store's ledger; by default in a process of its own, so that no request waits for it.
    """

    def __init__(
        self,
        gateway: Gateway,
        place: Repository,
        seconds: float,
        count: Callable[[Store], Remade] = remade_apart,
    ) -> None:
        self._gateway = gateway
        self._place = place
        self._exchange = Exchange(place)
        self._seconds = seconds
        self._count = count
        self._failing = ""
        self._made: Remade | None = None

    async def run(self) -> None:
        """Takes round after round, the first one at once, until it is cancelled."""
        while True:
            try:
                await self.round()
            except Exception:  # nothing that is read there may end the rounds
                logger.exception("A round of exchange failed")
            await asyncio.sleep(self._seconds * random.uniform(0.9, 1.1))

    async def round(self) -> None:
        """Exchanges outcomes, and has the next request routed by what came of it.

        Where the repository refuses, the router learns from this server's store all the same.
        """
        gateway = self._gateway
        try:
            self._made = await asyncio.to_thread(self._exchanged)
        except StoreUnavailable as error:
            self._note(f"the store cannot be read ({error})")
        except OverflowError as error:
            self._note(f"the store cannot be counted ({error})")
        gateway.metrics.exchanged(not self._failing, len(self._exchange.known), len(self._exchange.aside))
        while self._made is not None:
            serving = gateway.serving
            taught = await asyncio.to_thread(self._taught, serving.router)
            if taught is serving.router:
                return
            if gateway.serving is serving:  # else another one has taken its place meanwhile
                gateway.serving = serving._replace(router=taught)
                return

    def taught(self, router: Any) -> Any:
        """A router that is to serve, with what is known; itself where that is nothing new.

        Args:
            router ([`IR3DERoutingPipeline`]): as it was loaded.
        """
        return router if self._made is None else self._taught(router)

    def _exchanged(self) -> Remade:
        """What all servers know; without the repository, what is known already and this server's store."""
        traffic = self._gateway.traffic
        assert traffic is not None
        store = traffic.store
        taken_back = store.taken_back
        try:
            made = self._exchange.round(lambda: self._count(store))
            if taken_back is not None:  # the repository's history forgets it too
                self._place.forget()
                store.forgotten(taken_back)
        except ExchangeRefused as error:
            self._note(str(error))
            return self._exchange.united(self._count(store))
        self._note("")
        return made

    def _taught(self, router: Any) -> Any:
        """A copy of a router that has learned; itself where there is nothing to learn, or it cannot."""
        assert self._made is not None
        copy = router.copy()
        try:
            brought = bring(copy.model, self._made)
            if not brought.changed:
                return router
            try_routes(copy)  # makes its tables before the first request
        except (ValueError, OverflowError) as error:
            logger.error("The router cannot take what was exchanged, and stays as it is: %s", str(error)[:400])
            return router
        logger.info("The router has learned: %s", brought.said.replace("\n", " "))
        return copy

    def _note(self, why: str) -> None:
        """Says once that the exchange fails, and once that it works again."""
        if why and not self._failing:
            logger.error("Outcomes are not exchanged: %s. All else goes on; the next round tries again.", why)
        elif self._failing and not why:
            logger.warning("Outcomes are exchanged again.")
        self._failing = why
