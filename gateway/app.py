"""The addresses of the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from .apis import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from .errors import GatewayError, no_model
from .gateway import Answer, Gateway, refusal, request_id
from .metrics import CONTENT_TYPE
from .other import Other
from .requests import ROUTER


def api(gateway: Gateway) -> Starlette:
    """What is mounted under `/v1`.

    Args:
        gateway ([`Gateway`]): that answers.
    """
    pages = _Pages(gateway)
    routes = [
        *(Route(f"/{each.path}", Answer(gateway, each), methods=["POST"]) for each in (CHAT, COMPLETIONS)),
        *(Route(f"/{each.path}", Answer(gateway, each), methods=["POST"]) for each in (RESPONSES, MESSAGES)),
        Route("/models", pages.models),
        Route("/models/{name}", pages.model),
        Route("/{path:path}", Other(gateway)),
    ]
    return Starlette(routes=routes, exception_handlers=_HANDLERS)


def application(gateway: Gateway) -> Starlette:
    """The whole gateway: `/v1`, and what those who run it look at.

    Args:
        gateway ([`Gateway`]): that answers.
    """
    pages = _Pages(gateway)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        """Closes the connections to the experts at the end."""
        yield
        await gateway.close()

    routes = [
        Mount("/v1", api(gateway)),
        Route("/health", pages.health),
        Route("/ready", pages.ready),
        Route("/metrics", pages.metrics),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=_HANDLERS)


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        code = "not_found" if error.status_code == 404 else "refused"
        message = f"{error.detail}: {request.method} is not answered at this address."
        error = GatewayError(error.status_code, code, message)
    assert isinstance(error, GatewayError)
    return refusal(error, CHAT, request_id(request))


_HANDLERS: dict[Any, Any] = {HTTPException: _refuse, GatewayError: _refuse}


class _Pages:
    """The addresses that no expert answers."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def _described(self, name: str) -> dict[str, Any]:
        about = {"id": name, "object": "model", "created": self._gateway.started, "owned_by": ROUTER}
        expert = self._gateway.serving.experts.get(name)
        return about if expert is None else about | {"capabilities": expert.capabilities.described()}

    async def models(self, _: Request) -> Response:
        """Lists the router and its experts, with what is known of what they can do."""
        names = [ROUTER, *self._gateway.serving.experts]
        return _json({"object": "list", "data": [self._described(name) for name in names]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        name, known = request.path_params["name"], [ROUTER, *self._gateway.serving.experts]
        if name not in known:
            raise no_model(name, known)
        return _json(self._described(name))

    async def health(self, _: Request) -> Response:
        """That the process lives."""
        return _json({"status": "alive"})

    async def ready(self, _: Request) -> Response:
        """That it can serve."""
        serving = self._gateway.serving
        return _json({"status": "ready", "revision": serving.revision, "experts": list(serving.experts)})

    async def metrics(self, _: Request) -> Response:
        """Figures for Prometheus."""
        text = await asyncio.to_thread(self._gateway.metrics.shown)
        return Response(text, media_type=CONTENT_TYPE)


def _json(body: dict[str, Any]) -> Response:
    return Response(json.dumps(body), media_type="application/json")
