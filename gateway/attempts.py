"""From the experts that may answer to an answer that has begun: a few tries, then the next expert."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import NamedTuple

from ir3de.prompts_ir3de import may_refuse_system

from .breaker import Breaker, BreakerOptions
from .choice import Choice
from .errors import GatewayError
from .exchange import Exchange
from .forward import ExpertFailed, Forwarder, Upstream, unavailable
from .local import LocalExpert, Workshop
from .metrics import Metrics
from .relay import Reply
from .requests import Ask
from .serving import Expert, Serving

logger = logging.getLogger(__name__)


class Patience(NamedTuple):
    """
    How long a request is tried.

    Args:
        retries (`int`): further tries with an expert that may do better a moment later.
        experts (`int`): that are tried at most.
        wait (`float`): seconds before the first retry; doubled before the next.
        most_wait (`float`): seconds that a server may ask for before it is tried again; else the next one is asked.
    """

    retries: int = 1
    experts: int = 3
    wait: float = 0.2
    most_wait: float = 2.0


class Attempts:
    """
    Asks experts until one begins to answer.

    Args:
        forwarder ([`Forwarder`]): that sends requests to servers.
        workshop ([`Workshop`]): where experts on this machine generate.
        patience ([`Patience`]): how often.
        breaker ([`BreakerOptions`]): when an expert is left alone.
        metrics ([`Metrics`]): where failures are counted.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        workshop: Workshop,
        patience: Patience,
        breaker: BreakerOptions,
        metrics: Metrics,
    ) -> None:
        self._forwarder = forwarder
        self._workshop = workshop
        self._patience = patience
        self._options = breaker
        self._metrics = metrics
        self._breakers: dict[str, Breaker] = {}

    async def first_reply(
        self, ask: Ask, choice: Choice, serving: Serving, headers: Mapping[str, str], exchange: Exchange
    ) -> Reply:
        """The reply of the first expert that gives one; `exchange.expert` names it.

        Args:
            ask ([`Ask`]): the request.
            choice ([`Choice`]): who may answer, best first.
            serving ([`Serving`]): the experts.
            headers (`Mapping[str, str]`): of the client.
            exchange ([`Exchange`]): where failures are noted.

        Raises:
            GatewayError: nobody answers.
        """
        failures: dict[str, str] = {}
        waits: list[float] = []
        refused: GatewayError | None = None  # by an expert that cannot do it
        busy = True
        tried = 0
        for name in choice.candidates:
            breaker = self.breaker(name, serving)
            if tried == self._patience.experts:
                break
            if not breaker.admit():
                failures[name] = "left alone for a while after it failed"
                waits.append(breaker.wait)
                busy = False
                continue
            tried += 1
            conversation = None
            if choice.before not in (None, name):
                kept, dropped = ask.api.without_thoughts(ask.body.fields)
                if dropped:
                    conversation = json.dumps(kept)
                    exchange.note = f"{dropped} parts that only {choice.before} can read were left out"
            try:
                reply = await self._ask(serving.experts[name], breaker, ask, conversation, headers, exchange)
            except ExpertFailed as failure:
                failures[name] = failure.why
                exchange.failures.append((name, failure.why))
                busy = busy and failure.status == 429
                if failure.status in (429, 503) and failure.retry_after is not None:
                    waits.append(failure.retry_after)
                continue
            except GatewayError as refusal:
                if not refusal.elsewhere:
                    raise
                refused = refused or refusal
                continue
            exchange.expert = name
            return reply
        if refused is not None:
            raise refused
        complete = len(waits) == len(failures)
        raise unavailable(failures, min(waits) if complete else None, busy)

    def breaker(self, name: str, serving: Serving) -> Breaker:
        """The breaker of an expert; an expert that is at another place after a swap has another."""
        key = f"{name} {serving.experts[name].base}"
        if key not in self._breakers:
            self._breakers[key] = Breaker(self._options)
        return self._breakers[key]

    async def _ask(
        self,
        expert: Expert,
        breaker: Breaker,
        ask: Ask,
        conversation: str | None,
        headers: Mapping[str, str],
        exchange: Exchange,
    ) -> Reply:
        """The reply of one expert, after some patience with it."""
        for attempt in range(self._patience.retries + 1):
            started = time.perf_counter()
            if exchange.trace is not None:
                headers = {**headers, **exchange.trace.asks(expert)}
            try:
                reply = await self._open(expert, ask, conversation, headers, exchange)
            except ExpertFailed as failure:
                if exchange.trace is not None:
                    exchange.trace.failed(failure.why)
                if failure.broken:
                    breaker.failed()
                else:
                    breaker.succeeded()
                self._metrics.failed(expert.name, breaker.is_open)
                wait = failure.retry_after or self._patience.wait * 2**attempt
                last = attempt == self._patience.retries or breaker.is_open
                if last or not failure.again or wait > self._patience.most_wait:
                    raise
                await asyncio.sleep(wait)
            except BaseException:
                breaker.left()
                raise
            else:
                if breaker.is_open:
                    self._metrics.answered(expert.name)
                breaker.succeeded()
                exchange.expert_seconds = time.perf_counter() - started
                return reply
        raise AssertionError("unreachable")

    async def _open(
        self, expert: Expert, ask: Ask, conversation: str | None, headers: Mapping[str, str], exchange: Exchange
    ) -> Reply:
        if isinstance(expert, LocalExpert):
            return await self._workshop.open(expert, ask)
        sent = expert.headers(headers, exchange.id, ask.api)
        if ask.details:
            sent["accept-encoding"] = "identity"  # or the route could not be put into the answer
        body = expert.body(ask, conversation, expert.no_system)
        first: Upstream | ExpertFailed
        try:
            first = await self._forwarder.open(expert, ask.api.path, body, sent)
        except ExpertFailed as failure:
            first = failure
        is_refusal = may_refuse_system(first.status, first.said)
        folded = expert.body(ask, conversation, no_system=True) if is_refusal else body
        if isinstance(first, ExpertFailed):
            if folded == body:
                raise first
        elif folded == body:
            return first
        else:
            first.close()
        # What the spec adds may be what the server refuses: once more, with that in the first message of the user.
        reply = await self._forwarder.open(expert, ask.api.path, folded, sent)
        if reply.status < 400:
            logger.warning(
                "The server of expert %s refuses system messages: the user's first takes their text.", expert.name
            )
            expert.no_system = True
        return reply
