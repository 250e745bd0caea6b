"""The addresses of the gateway."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from .apis import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from .errors import GatewayError, no_model
from .gateway import Answer, Gateway, refusal, request_id
from .metrics import CONTENT_TYPE
from .other import Other
from .requests import ROUTER
from .watch import Watch

if TYPE_CHECKING:
    from .learning import Learning

logger = logging.getLogger(__name__)


def api(gateway: Gateway) -> Starlette:
    """What is mounted under `/v1`.

    Args:
        gateway ([`Gateway`]): that answers.
    """
    return Starlette(routes=_routes(gateway, _Pages(gateway)), exception_handlers=_HANDLERS)


def _routes(gateway: Gateway, pages: _Pages) -> list[Route]:
    return [
        *_feedback(gateway),
        *(Route(f"/{each.path}", Answer(gateway, each), methods=["POST"]) for each in (CHAT, COMPLETIONS)),
        *(Route(f"/{each.path}", Answer(gateway, each), methods=["POST"]) for each in (RESPONSES, MESSAGES)),
        Route("/models", pages.models),
        Route("/models/{name:path}", pages.model),
        Route("/{path:path}", Other(gateway)),
    ]


def _feedback(gateway: Gateway) -> list[Route]:
    """Where scores go, if there is a store for them."""
    if gateway.traffic is None:
        return []
    from .feedback import FeedbackPages  # which needs the package of databases

    pages = FeedbackPages(gateway.traffic, gateway.keys, gateway.settings.limits, gateway.metrics)
    return [
        Route("/feedback", pages.give, methods=["POST"]),
        Route("/feedback", pages.take_many_back, methods=["DELETE"]),
        Route("/feedback/{id}", pages.take_back, methods=["DELETE"]),
    ]


def application(gateway: Gateway, watch: Watch | None = None, learning: Learning | None = None) -> Starlette:
    """The whole gateway: `/v1`, and what those who run it look at.

    Args:
        gateway ([`Gateway`]): that answers.
        watch ([`Watch`], *optional*): that keeps its router current.
        learning ([`Learning`], *optional*): that exchanges outcomes with other servers.
    """
    pages = _Pages(gateway, watch)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        """Watches and learns while it serves, and closes the connections to the experts at the end."""
        tasks = [asyncio.ensure_future(each.run()) for each in (watch, learning) if each]
        yield
        for task in tasks:
            task.cancel()
        await gateway.close()

    routes = [
        Mount("/v1", routes=_routes(gateway, pages)),
        Route("/health", pages.health),
        Route("/ready", pages.ready),
        Route("/metrics", pages.metrics),
        Route("/admin/rollback", pages.roll_back, methods=["POST"]),
    ]
    middleware = []
    if gateway.settings.cors:
        shown = ["x-ir3de-expert", "x-ir3de-score", "x-ir3de-note", "x-request-id"]
        allowed: Any = {"allow_origins": list(gateway.settings.cors), "allow_methods": ["GET", "POST", "DELETE"]}
        middleware.append(Middleware(CORSMiddleware, allow_headers=["*"], expose_headers=shown, **allowed))
    return Starlette(routes=routes, middleware=middleware, lifespan=lifespan, exception_handlers=_HANDLERS)


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        code = "not_found" if error.status_code == 404 else "refused"
        message = f"{error.detail}: {request.method} is not answered at this address."
        error = GatewayError(error.status_code, code, message)
    assert isinstance(error, GatewayError)
    return refusal(error, CHAT, request_id(request.headers))


_HANDLERS: dict[Any, Any] = {HTTPException: _refuse, GatewayError: _refuse}


class _Pages:
    """The addresses that no expert answers."""

    def __init__(self, gateway: Gateway, watch: Watch | None = None) -> None:
        self._gateway = gateway
        self._watch = watch

    def _described(self, name: str) -> dict[str, Any]:
        about = {"id": name, "object": "model", "created": self._gateway.started, "owned_by": ROUTER}
        expert = self._gateway.serving.experts.get(name)
        return about if expert is None else about | {"capabilities": expert.capabilities.described()}

    async def models(self, request: Request) -> Response:
        """Lists the router and its experts, with what is known of what they can do."""
        self._gateway.keys.admit(request.headers)
        names = [ROUTER, *self._gateway.serving.experts]
        return _json({"object": "list", "data": [self._described(name) for name in names]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        self._gateway.keys.admit(request.headers)
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

    async def roll_back(self, request: Request) -> Response:
        """Takes the router before the present one back."""
        admin = self._gateway.keys.check_admin(request.headers)
        try:
            if self._watch is None:
                raise LookupError("no router is watched: start with `--watch`")
            revision = await self._watch.roll_back()
        except LookupError as error:
            raise GatewayError(409, "nothing_to_take_back", f"Nothing to take back: {error}.") from None
        except Exception as error:
            logger.exception("The router before cannot be loaded")
            message = f"The router before cannot be loaded just now ({type(error).__name__}); that is tried again."
            raise GatewayError(503, "not_loaded", message) from None
        logger.warning("%s has taken the router back to revision %s", admin, revision)
        return _json({"revision": revision})

    async def metrics(self, _: Request) -> Response:
        """Figures for Prometheus."""
        text = await asyncio.to_thread(self._gateway.metrics.shown)
        return Response(text, media_type=CONTENT_TYPE)


def _json(body: dict[str, Any]) -> Response:
    return Response(json.dumps(body), media_type="application/json")
