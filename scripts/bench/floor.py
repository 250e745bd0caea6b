"""The least that a forwarder on the gateway's libraries costs: it reads nothing of a request, and passes bytes on."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send


class Floor:
    """
    An ASGI application that sends every request to one server.

    Args:
        base (`str`): the server's address, up to `/v1`.
    """

    def __init__(self, base: str) -> None:
        self._url = f"{base}/chat/completions"
        self._session: aiohttp.ClientSession

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Keeps connections to the server."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False) as session:
            self._session = session
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards one request."""
        body, more = b"", True
        while more:
            received = await receive()
            body, more = body + received["body"], received["more_body"]
        headers = {"content-type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers) as response:
            kept = [(name.lower(), value) for name, value in response.raw_headers if name != b"Transfer-Encoding"]
            await send({"type": "http.response.start", "status": response.status, "headers": kept})
            while part := await response.content.readany():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def main(base: str, port: str) -> None:
    """Forwards until it is stopped."""
    floor = Floor(base)
    routes = [Route("/v1/chat/completions", floor, methods=["POST"])]
    application = Starlette(routes=routes, lifespan=floor.lifespan)
    uvicorn.run(application, port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
