"""What is not routed, such as `/v1/embeddings`: it goes to one expert, if the settings name one."""

from __future__ import annotations

import json
from contextlib import suppress

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from .apis import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from .body import Body
from .errors import GatewayError
from .exchange import Exchange
from .forward import ExpertFailed, RemoteExpert, in_header, unavailable
from .gateway import Gateway, refusal, request_id
from .presence import Presence
from .reading import read_body
from .relay import relay
from .requests import ROUTER, response_key

_TAKEN = ("models", *(api.path for api in (CHAT, COMPLETIONS, RESPONSES, MESSAGES)))  # for other methods


class Other:
    """
    The handler of every other address under `/v1`, as an ASGI application.

    Args:
        gateway ([`Gateway`]): that they come to.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards one request, or says that there is nobody to forward it to."""
        request = Request(scope, receive)
        exchange = Exchange(request_id(request.headers), "other")
        self._gateway.metrics.came_in()
        try:
            await self._forward(request, send, exchange)
        except GatewayError as error:
            exchange.outcome, exchange.status = error.code, error.status
            await refusal(error, CHAT, exchange.id)(scope, receive, send)
        except ExpertFailed:
            exchange.outcome = "broken"
        finally:
            self._gateway.went_out(exchange)

    def _name(self, path: str, exchange: Exchange) -> str | None:
        """Whose server the request goes to: of a response, who made it."""
        kind, _, rest = path.partition("/")
        if kind == "responses":
            key = response_key(exchange.caller, rest.partition("/")[0])
            return self._gateway.chooser.conversations.expert(key)
        return self._gateway.settings.default_expert

    async def _forward(self, request: Request, send: Send, exchange: Exchange) -> None:
        gateway, path = self._gateway, request.path_params["path"]
        exchange.caller = gateway.keys.admit(request.headers)
        if path in _TAKEN:
            message = f"Method Not Allowed: {request.method} is not answered at this address."
            raise GatewayError(405, "refused", message)
        expert = gateway.serving.experts.get(self._name(path, exchange) or "")
        if not isinstance(expert, RemoteExpert) or ".." in path:
            message = f"Not Found: {request.method} is not answered at this address."
            raise GatewayError(404, "not_found", message)
        data = await read_body(request, gateway.settings.limits)
        headers = expert.headers(dict(request.headers), exchange.id, None)
        headers["content-type"] = request.headers.get("content-type", "application/json")
        if headers["content-type"].startswith("application/json"):
            with suppress(GatewayError):  # what is no JSON object goes on as it is
                body = Body(data)
                if body.fields.get("model") in (ROUTER, expert.name):
                    data = body.with_changes({"model": json.dumps(expert.model)})
        if request.url.query:
            path = f"{path}?{request.url.query}"
        async with Presence(request.receive) as presence:
            try:
                reply = await gateway.forwarder.open(expert, path, data or None, headers, request.method)
            except ExpertFailed as failure:
                raise unavailable({expert.name: failure.why}, failure.retry_after, failure.status == 429) from None
            exchange.expert, exchange.status = expert.name, reply.status
            head = [(b"x-ir3de-expert", in_header(expert.name)), (b"x-request-id", exchange.id.encode())]
            try:
                await relay(reply, CHAT, head, None, send, presence, exchange)
            finally:
                reply.close()
            exchange.outcome = exchange.outcome or ("answered" if reply.status < 400 else "refused")
