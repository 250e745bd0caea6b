"""The gateway: a router, its experts, and what all requests share; and the handler of a request."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ir3de.traffic.budget import Spending

from .apis import RESPONSES, Api
from .attempts import Attempts
from .choice import Choice, Chooser
from .conversations import conversations
from .errors import GatewayError
from .exchange import Exchange
from .forward import ExpertFailed, Forwarder, Headers, in_header
from .generation import pieces
from .keys import Keys
from .local import Generate, Workshop
from .metrics import Metrics
from .presence import Presence
from .purse import Purse
from .reading import read_body
from .relay import relay
from .requests import ROUTER, read_ask, response_key
from .serving import Serving
from .settings import Settings
from .words import Words

if TYPE_CHECKING:
    from .feedback import Keeping, Traffic
    from .tracing import Tracing

logger = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_DETAILS = (
    "expert",
    "score",
    "ranking",
    "fallback",
    "explored",
    "familiarity",
    "second_opinion",
    "domains",
    "pairs",
    "support",
    "tokens",
)


class Gateway:
    """
    What the requests share.

    Args:
        serving ([`Serving`]): the router and its experts; another one may take its place between two requests.
        settings ([`Settings`]): how it serves.
        generate (`Callable`): how experts on this machine generate; a Space borrows hardware for it.
        keeping ([`Keeping`], *optional*): where answers and their scores are kept.
        spending ([`Spending`], *optional*): of a budget.
        tracing ([`Tracing`], *optional*): where spans go.
    """

    def __init__(
        self,
        serving: Serving,
        settings: Settings,
        generate: Generate = pieces,
        keeping: Keeping | None = None,
        spending: Spending | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.serving = serving
        self.settings = settings
        self.metrics = Metrics()
        self.tracing = tracing
        shared = settings.shared
        self.keys = Keys(settings.keys, shared=shared and shared / "limits")
        self.started = int(time.time())
        self.traffic = self._traffic(keeping) if keeping else None
        self.purse = None if spending is None else Purse(spending)
        known = conversations(shared and shared / "conversations")
        words = Words(settings.more_wrappers)
        self.chooser = Chooser(words, settings.limits, known, keeping is not None, self.purse)
        self.forwarder = Forwarder(settings.timeouts)
        workshop = Workshop(settings.limits, generate, self.metrics)
        self.attempts = Attempts(self.forwarder, workshop, settings.patience, settings.breaker, self.metrics)

    def _traffic(self, keeping: Keeping) -> Traffic:
        from .feedback import Traffic  # which needs the package of databases, and a gateway without a store does not

        return Traffic(keeping, self.metrics, self.keys)

    def went_out(self, exchange: Exchange) -> None:
        """Counts, pays, keeps and logs a request that is done with; where one of these fails, the others are done."""
        exchange.outcome = exchange.outcome or "left"
        for step in (self.attempts.ended, self._count_tokens, self._count, self._pay, self._keep, Exchange.log):
            try:
                step(exchange)
            except Exception:  # the answer is with the client already
                logger.exception("A request that is done with could not be noted in full")

    def _count_tokens(self, exchange: Exchange) -> None:
        exchange.count_tokens(self.serving.router.tokenizer)

    def _count(self, exchange: Exchange) -> None:
        self.keys.spent(exchange.caller, exchange.prompt_tokens + exchange.completion_tokens)
        self.metrics.went_out(exchange)
        if exchange.trace is not None:
            exchange.trace.end(exchange)

    def _pay(self, exchange: Exchange) -> None:
        if self.purse is None or not exchange.routed:
            return
        serving = self.serving
        spec = serving.router.experts.spec(exchange.expert) if exchange.expert in serving.experts else None
        self.purse.settle(exchange, spec)
        spending = self.purse.spending
        self.metrics.spent(spending.spent, spending.left, spending.price)

    def _keep(self, exchange: Exchange) -> None:
        if self.traffic is not None:
            self.traffic.went(exchange, self.serving)

    async def close(self) -> None:
        """Closes the connections to the experts, and the store once all is written."""
        await self.forwarder.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        if self.traffic is not None:
            await asyncio.to_thread(self.traffic.close)


class Answer:
    """
    The handler of the requests of one API, as an ASGI application.

    Args:
        gateway ([`Gateway`]): that they come to.
        api ([`Api`]): the shape of the requests.
    """

    def __init__(self, gateway: Gateway, api: Api) -> None:
        self._gateway = gateway
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, and notes how it went."""
        headers = headers_of(scope)
        exchange = Exchange(request_id(headers), self._api.path)
        if self._gateway.tracing is not None:
            exchange.trace = self._gateway.tracing.begin(self._api, headers)
        self._gateway.metrics.came_in()
        try:
            await self._answer(Request(scope, receive), headers, send, exchange)
        except GatewayError as error:
            exchange.outcome, exchange.status = error.code, error.status
            await refusal(error, self._api, exchange.id)(scope, receive, send)
        except ExpertFailed as failure:  # in the middle of an answer in one piece: the connection is closed
            exchange.outcome = "broken"
            exchange.failures.append((exchange.expert, f"{failure.why} in the middle of its answer"))
        except Exception as error:
            await tell_failure(error, self._api, exchange, scope, receive, send)
        finally:
            self._gateway.went_out(exchange)

    async def _answer(self, request: Request, headers: dict[str, str], send: Send, exchange: Exchange) -> None:
        gateway = self._gateway
        exchange.caller = gateway.keys.admit(headers)
        serving = gateway.serving
        data = await read_body(request.receive, headers, gateway.settings.limits)
        async with Presence(request.receive) as presence:
            known = [ROUTER, *serving.experts]
            ask = read_ask(self._api, data, headers, gateway.settings.limits, known, exchange.caller)
            if gateway.settings.details:
                ask = ask._replace(details=True)
            exchange.model, exchange.stream = ask.model, ask.stream
            if gateway.traffic is not None and ask.generate:
                gateway.traffic.came(exchange, ask, headers)
            began = time.perf_counter()
            choice = await gateway.chooser.choose(ask, serving)
            exchange.route_seconds = time.perf_counter() - began
            if exchange.trace is not None:
                exchange.trace.routed(choice.record, exchange.route_seconds)
            if not ask.generate:
                await _tell_route(choice, exchange)(request.scope, request.receive, send)
                return
            exchange.routed, exchange.said = True, choice.said
            if gateway.purse is not None:
                gateway.purse.reserve(exchange, choice)
            exchange.recognised = choice.record.get("recognised")
            reply = await gateway.attempts.first_reply(ask, choice, serving, headers, exchange)
            if gateway.traffic is not None:
                exchange.read_answer_id(reply.first)
            remember = gateway.chooser.conversations.remember
            if ask.agent:
                remember(ask.conversation, exchange.expert)
            if self._api is RESPONSES:
                exchange.read_id(reply.first)
                if exchange.response:
                    remember(response_key(exchange.caller, exchange.response), exchange.expert)
            exchange.score = _score(choice, exchange.expert)
            exchange.status, exchange.ask, exchange.reply = reply.status, ask, reply
            details = _details(choice, exchange) if ask.details else None
            try:
                await relay(reply, self._api, _head(exchange), details, send, presence, exchange)
            finally:
                reply.close()
            exchange.outcome = exchange.outcome or ("answered" if reply.status < 400 else "refused")


def headers_of(scope: Scope) -> dict[str, str]:
    """The headers of a request; one that is there several times is a list, which may stand in one line as well."""
    given = scope["headers"]
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in given}
    if len(headers) == len(given):
        return headers
    values: dict[str, list[str]] = {}
    for name, value in given:
        values.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return {name: ", ".join(each) for name, each in values.items()}


def request_id(headers: Mapping[str, str]) -> str:
    """The client's name for its request, if it is a short and plain one, or a new one."""
    given = headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else secrets.token_hex(16)


def refusal(error: GatewayError, api: Api, id_: str) -> Response:
    """The response that tells a client of an error."""
    headers = {**error.headers, "x-request-id": id_}
    return Response(json.dumps(api.error(error)), error.status, headers, "application/json")


async def tell_failure(
    error: Exception, api: Api, exchange: Exchange, scope: Scope, receive: Receive, send: Send
) -> None:
    """Tells the client of a fault of the gateway's own, and the log where it was; the error's words may hold what was
    said, and go nowhere.

    Args:
        error (`Exception`): that nobody expected.
        api ([`Api`]): whose form the client reads.
        exchange ([`Exchange`]): where it is noted.
        scope, receive, send: of ASGI.
    """
    if isinstance(error, RecursionError):  # what could just be read is written again, within something else
        told = GatewayError(400, "invalid_json", "The body is nested too deeply to be answered.")
        exchange.outcome = told.code
    else:
        message = f"The gateway failed; its log says more of request {exchange.id}."
        told = GatewayError(500, "internal_error", message)
        exchange.outcome = "error"
        lines = "".join(traceback.format_tb(error.__traceback__))
        logger.error("Request %s: the gateway failed with %s\n%s", exchange.id, type(error).__name__, lines)
    if exchange.first_byte_seconds is None:
        exchange.status = told.status
        await refusal(told, api, exchange.id)(scope, receive, send)
    elif exchange.reply is not None and exchange.reply.is_events and not exchange.reply.is_coded:
        event = api.error_event(told, exchange.sent)
        await send({"type": "http.response.body", "body": event, "more_body": False})
    # Else half of an answer in one piece is with the client, which sees the connection close.


def _tell_route(choice: Choice, exchange: Exchange) -> Response:
    """The response to a request that asks for its route alone."""
    exchange.outcome, exchange.status = "routed", 200
    exchange.score = choice.record["score"]
    details = {**_details(choice, exchange), "expert": choice.record["expert"]}
    body = {"id": exchange.id, "object": "ir3de.route", "model": exchange.model, "ir3de": details}
    return Response(json.dumps(body), headers={"x-request-id": exchange.id}, media_type="application/json")


def _head(exchange: Exchange) -> Headers:
    head = [(b"x-ir3de-expert", in_header(exchange.expert)), (b"x-request-id", exchange.id.encode())]
    if exchange.score is not None:
        head.append((b"x-ir3de-score", f"{exchange.score:.6g}".encode()))
    if exchange.note:
        head.append((b"x-ir3de-note", in_header(exchange.note)))
    return head


def _score(choice: Choice, expert: str) -> float | None:
    entries = [choice.record, *choice.record["ranking"]]
    return next((entry["score"] for entry in entries if entry["expert"] == expert), None)


def _details(choice: Choice, exchange: Exchange) -> dict[str, Any]:
    """What the field `ir3de` of an answer holds."""
    record: Mapping[str, Any] = choice.record
    details = {key: record[key] for key in _DETAILS if key in record}
    details |= {"expert": exchange.expert, "score": exchange.score}
    if exchange.failures:
        details["failures"] = [{"expert": expert, "error": why} for expert, why in exchange.failures]
    return details
