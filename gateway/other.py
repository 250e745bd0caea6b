"""What is not routed, such as `/v1/embeddings`: it goes to one expert, if the settings name one."""

from __future__ import annotations

import json
from contextlib import suppress
from urllib.parse import quote

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from .apis import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Api
from .body import Body
from .errors import GatewayError
from .exchange import Exchange
from .forward import ExpertFailed, RemoteExpert, in_header, unavailable
from .gateway import Gateway, headers_of, refusal, request_id, tell_failure
from .presence import Presence
from .reading import read_body
from .relay import relay
from .requests import ROUTER, response_key

_TAKEN = ("models", *(api.path for api in (CHAT, COMPLETIONS, RESPONSES, MESSAGES)))  # for other methods
_PASSED = (404, 405)  # what the server says of an address of its own, and not of a model that it should have


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
            await refusal(error, _api(scope["path"]), exchange.id)(scope, receive, send)
        except ExpertFailed:
            exchange.outcome = "broken"
        except Exception as error:
            await tell_failure(error, _api(scope["path"]), exchange, scope, receive, send)
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
        client = headers_of(request.scope)
        exchange.caller = gateway.keys.admit(client)
        if path in _TAKEN:
            message = f"Method Not Allowed: {request.method} is not answered at this address."
            raise GatewayError(405, "refused", message)
        expert = gateway.serving.experts.get(self._name(path, exchange) or "")
        if not isinstance(expert, RemoteExpert) or not {".", ".."}.isdisjoint(path.split("/")):
            message = f"Not Found: {request.method} is not answered at this address."
            raise GatewayError(404, "not_found", message)
        data = await read_body(request.receive, request.headers, gateway.settings.limits)
        api = _api(request.scope["path"])
        headers = expert.headers(client, exchange.id, api)
        headers["content-type"] = client.get("content-type", "application/json")
        if headers["content-type"].startswith("application/json"):
            with suppress(GatewayError):  # what is no JSON object goes on as it is
                body = Body(data)
                if body.fields.get("model") in (ROUTER, expert.name):
                    data = body.with_changes({"model": json.dumps(expert.model)})
        address = _as_it_came(request.scope)
        async with Presence(request.receive) as presence:
            try:
                reply = await gateway.forwarder.open(expert, address, data or None, headers, request.method, _PASSED)
            except ExpertFailed as failure:
                raise unavailable({expert.name: failure.why}, failure.retry_after, failure.status == 429) from None
            exchange.expert, exchange.status = expert.name, reply.status
            head = [(b"x-ir3de-expert", in_header(expert.name)), (b"x-request-id", exchange.id.encode())]
            try:
                await relay(reply, api, head, None, send, presence, exchange)
            finally:
                reply.close()
            exchange.outcome = exchange.outcome or ("answered" if reply.status < 400 else "refused")


def _api(path: str) -> Api:
    """Whose form an address has, such as that of `/v1/messages/count_tokens`."""
    return MESSAGES if "/v1/messages/" in path else CHAT


def _as_it_came(scope: Scope) -> str:
    """What follows `/v1/` in the address of a request, with its query; nothing of it is decoded."""
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    address = path.decode("latin-1").partition("/v1/")[2]
    return f"{address}?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else address
