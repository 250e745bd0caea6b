"""Requests that come at the same time are routed in one call, in which each takes a part of what it would alone."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.policy_ir3de import Record

_FEWEST = 3  # prompts for which one call takes less time than a call for each
_MOST = 32  # prompts of a call, which holds up the loop
_TURNS = 2  # of the loop, in which some more come


class _Waiting(NamedTuple):
    """
    A prompt that is to be routed.

    Args:
        router ([`IR3DERoutingPipeline`]): by which.
        prompt (`str` or chat): that is routed on.
        options (`dict`): of the call.
        record (`asyncio.Future`): what comes of it.
        written (`str`): the options as Python writes them, which tells true from 1.
    """

    router: IR3DERoutingPipeline
    prompt: Any
    options: dict[str, Any]
    record: asyncio.Future[Record]
    written: str

    def goes_with(self, other: _Waiting) -> bool:
        """Whether one call can route both."""
        return self.router is other.router and self.written == other.written


class Together:
    """Routes prompts on the event loop, together with those that come within a few turns of it."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []

    async def route(self, router: IR3DERoutingPipeline, prompt: Any, options: dict[str, Any]) -> Record:
        """The record of a prompt, the same as if it was routed alone.

        Args:
            router ([`IR3DERoutingPipeline`]): that routes.
            prompt (`str` or chat): that is routed on.
            options (`dict`): of the call.

        Raises:
            Exception: as the call of the router does.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._wait, _TURNS)
        waiting = _Waiting(router, prompt, options, loop.create_future(), repr(options))
        self._waiting.append(waiting)
        return await waiting.record

    def _wait(self, turns: int) -> None:
        """Lets turns of the loop go by before some are routed; each takes microseconds where there is nothing to do."""
        if turns:
            asyncio.get_running_loop().call_soon(self._wait, turns - 1)
        else:
            self._route_some()

    def _route_some(self) -> None:
        """Routes the first that waits and those that go with it; what is left has the next turn of the loop."""
        first = self._waiting[0]
        taken: list[_Waiting] = []
        left: list[_Waiting] = []
        for each in self._waiting:
            fits = len(taken) < _MOST and each.goes_with(first)
            (taken if fits else left).append(each)
        self._waiting = left
        if left:
            asyncio.get_running_loop().call_soon(self._route_some)
        present = [each for each in taken if not each.record.done()]  # the clients of the others have left
        if len(present) < _FEWEST or not _route_at_once(present):
            for each in present:
                _route_alone(each)


def _route_at_once(waiting: list[_Waiting]) -> bool:
    """Routes prompts in one call; where that fails for one of them, whatever the reason, nothing is done for any."""
    router, options = waiting[0].router, waiting[0].options
    try:
        records = router([each.prompt for each in waiting], generate=False, **options)
    except Exception:  # each is told its own as it is routed alone
        return False
    if any("reason" in record for record in records):
        return False
    for each, record in zip(waiting, records, strict=True):
        each.record.set_result(record)
    return True


def _route_alone(waiting: _Waiting) -> None:
    """Routes one prompt, or has its request told why not."""
    try:
        waiting.record.set_result(waiting.router(waiting.prompt, generate=False, **waiting.options))
    except Exception as error:
        waiting.record.set_exception(error)
