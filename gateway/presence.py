"""Whether a client is still there: once it has left, the work on its answer ends."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive


class Presence:
    """
    For the time of a `with` block, cancels the block as soon as the client has left; the block then ends quietly.

    Args:
        receive (`Receive`): of ASGI; the body has been read.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watch: asyncio.Task[None] | None = None
        self._working: asyncio.Task[object] | None = None
        self.left = False

    async def __aenter__(self) -> Presence:
        self._working = asyncio.current_task()
        self._watch = asyncio.ensure_future(self._wait())
        return self

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._working is not None:
            self.left = True
            self._working.cancel()

    def release(self) -> None:
        """Stops watching: the last bytes are about to be sent, after which the connection may close."""
        self._working = None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        working, self._working = self._working, None
        if self._watch is not None:
            self._watch.cancel()
        ended_by_us = self.left and kind is not None and issubclass(kind, asyncio.CancelledError)
        if ended_by_us and working is not None and hasattr(working, "uncancel"):
            working.uncancel()
        return ended_by_us
