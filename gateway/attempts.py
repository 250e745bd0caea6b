"""From the experts that may answer to an answer that has begun: a few tries, then the next expert."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import NamedTuple

from ir3de.prompts_ir3de import may_refuse_system

from .breaker import Breaker, BreakerOptions
from .choice import Choice
from .errors import TOO_LONG, GatewayError
from .exchange import Exchange
from .forward import ExpertFailed, Forwarder, RemoteExpert, Upstream, says_too_long, unavailable
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


class _Tries:
    """
    What became of the experts that were asked for one request.

    Args:
        serving ([`Serving`]): whose they are.
        exchange ([`Exchange`]): where failures are noted.
    """

    def __init__(self, serving: Serving, exchange: Exchange) -> None:
        self.number = 0
        self._serving = serving
        self._exchange = exchange
        self._failures: dict[str, str] = {}
        self._waits: list[float] = []
        self._busy = True
        self._refusal: tuple[str, GatewayError | Reply] | None = None  # the first, by an expert that cannot do it
        self._too_small = 0  # the largest window that was

    def has_too_small_a_window(self, name: str) -> bool:
        """Whether an expert's window is known to hold no more than one that was too small."""
        context = self._serving.experts[name].capabilities.context
        return context is not None and context <= self._too_small

    def left_alone(self, name: str, breaker: Breaker) -> None:
        """An expert was not asked, by its breaker."""
        self._failures[name] = f"left alone for a while {'after it failed' if breaker.is_open else 'as it asked'}"
        self._waits.append(breaker.wait)
        self._busy = False

    def failed(self, name: str, failure: ExpertFailed) -> None:
        """An expert did not answer."""
        self._failures[name] = failure.why
        self._exchange.failures.append((name, failure.why))
        self._busy = self._busy and failure.status == 429
        if failure.status in (429, 503) and failure.retry_after is not None:
            self._waits.append(failure.retry_after)

    def refused(self, name: str, refusal: GatewayError | Reply, is_too_long: bool) -> None:
        """An expert cannot do what is asked; another may."""
        self._refusal = self._refusal or (name, refusal)
        self._exchange.failures.append((name, "too long for its window" if is_too_long else "it cannot do this"))
        if is_too_long:
            self._too_small = max(self._too_small, self._serving.experts[name].capabilities.context or 0)

    def end(self) -> Reply:
        """The first refusal, which is the answer where nobody else has one.

        Raises:
            GatewayError: it is one of our own, or nobody answers.
        """
        if self._refusal is not None:
            name, refusal = self._refusal
            if isinstance(refusal, GatewayError):
                raise refusal
            self._exchange.expert = name
            return refusal
        complete = len(self._waits) == len(self._failures)
        raise unavailable(self._failures, min(self._waits) if complete else None, self._busy)


def _without_thoughts(ask: Ask, choice: Choice, name: str, exchange: Exchange) -> str | None:
    """JSON of a conversation without the thoughts of the expert that it had before, if another one is asked."""
    if choice.before in (None, name):
        return None
    kept, dropped = ask.api.without_thoughts(ask.body)
    if not dropped:
        return None
    exchange.note = f"{dropped} parts that only {choice.before} can read were left out"
    return kept


def _folded(
    expert: RemoteExpert, ask: Ask, conversation: str | None, body: bytes, first: Upstream | ExpertFailed
) -> bytes | None:
    """A request's body with the spec's system prompt in the user's first message, if that may be what the server
    refused, and is not how it was asked already.
    """
    if not may_refuse_system(first.status, first.said):
        return None
    folded = expert.body(ask, conversation, no_system=True)
    return None if folded == body else folded


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
        tries = _Tries(serving, exchange)
        for name in choice.candidates:
            if tries.number == self._patience.experts:
                break
            if tries.has_too_small_a_window(name):
                continue
            breaker = self.breaker(name, serving)
            if not breaker.admit():
                tries.left_alone(name, breaker)
                continue
            tries.number += 1
            conversation = _without_thoughts(ask, choice, name, exchange)
            try:
                reply = await self._ask(serving.experts[name], breaker, ask, conversation, headers, exchange)
            except ExpertFailed as failure:
                tries.failed(name, failure)
            except GatewayError as refusal:
                if not refusal.elsewhere:
                    raise
                tries.refused(name, refusal, refusal.code == TOO_LONG)
            else:
                if says_too_long(reply):
                    tries.refused(name, reply, is_too_long=True)
                    continue
                exchange.expert = name
                exchange.breaker = None if reply.complete else breaker
                return reply
        return tries.end()

    def ended(self, exchange: Exchange) -> None:
        """Notes how an answer ended that was not complete when it began."""
        if exchange.breaker is None:
            return
        if exchange.outcome == "broken":
            exchange.breaker.broke_off()
            self._metrics.failed(exchange.expert, exchange.breaker.is_open)
        elif exchange.outcome in ("answered", "refused"):
            exchange.breaker.succeeded()

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
                self._count(failure, expert, breaker, exchange)
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
                if reply.complete:
                    breaker.succeeded()
                else:
                    breaker.began()
                exchange.expert_seconds = time.perf_counter() - started
                return reply
        raise AssertionError("unreachable")

    def _count(self, failure: ExpertFailed, expert: Expert, breaker: Breaker, exchange: Exchange) -> None:
        """Notes a failure for those who look on, and for whether the expert is asked soon again."""
        if exchange.trace is not None:
            exchange.trace.failed(failure.why)
        if failure.broken:
            breaker.failed()
        else:
            breaker.succeeded()
        self._metrics.failed(expert.name, breaker.is_open)
        if (failure.retry_after or 0) > self._patience.most_wait:
            breaker.rest(failure.retry_after or 0)

    async def _open(
        self, expert: Expert, ask: Ask, conversation: str | None, headers: Mapping[str, str], exchange: Exchange
    ) -> Reply:
        if isinstance(expert, LocalExpert):
            return await self._workshop.open(expert, ask)
        sent = expert.headers(headers, exchange.id, ask.api)
        if ask.details:
            sent["accept-encoding"] = "identity"  # or the route could not be put into the answer
        body = expert.body(ask, conversation, expert.no_system)
        passed = () if ask.previous is None else (404,)  # it no longer keeps that response, and nobody else does
        try:
            reply = await self._forwarder.open(expert, ask.api.path, body, sent, passed=passed)
        except ExpertFailed as failure:
            folded = _folded(expert, ask, conversation, body, failure)
            if folded is None:
                raise
        else:
            folded = _folded(expert, ask, conversation, body, reply)
            if folded is None:
                return reply
            reply.close()
        # What the spec adds may be what the server refuses: once more, with that in the first message of the user.
        reply = await self._forwarder.open(expert, ask.api.path, folded, sent, passed=passed)
        if reply.status < 400:
            logger.warning(
                "The server of expert %s refuses system messages: the user's first takes their text.", expert.name
            )
            expert.no_system = True
        return reply
