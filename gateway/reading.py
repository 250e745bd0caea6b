"""The body of a request, read within the limits."""

from __future__ import annotations

from asyncio import timeout

from starlette.requests import ClientDisconnect, Request

from .errors import GatewayError
from .limits import Limits


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request, refused before it is read where its size is known.

    Raises:
        GatewayError: it is too large, is not of the length that it says, or stops coming.
    """
    too_large = GatewayError(413, "too_large", f"A request has at most {limits.body:,} bytes.")
    said = request.headers.get("content-length")
    if said is not None and (not said.isdecimal() or int(said) > limits.body):
        raise too_large
    parts: list[bytes] = []
    size = 0
    stream = request.stream()
    try:
        while True:
            async with timeout(limits.body_seconds):
                part = await anext(stream, None)
            if part is None:
                return b"".join(parts)
            size += len(part)
            if size > limits.body:
                raise too_large
            parts.append(part)
    except TimeoutError:
        message = f"The body stopped after {size:,} bytes for {limits.body_seconds:g} s."
        raise GatewayError(408, "request_timeout", message) from None
    except ClientDisconnect:
        raise GatewayError(400, "incomplete_body", f"The connection closed after {size:,} bytes of the body.") from None
