"""The body of a request, read within the limits."""

from __future__ import annotations

from asyncio import timeout
from collections.abc import Mapping

from starlette.types import Receive

from .errors import GatewayError
from .limits import Limits


async def read_body(receive: Receive, headers: Mapping[str, str], limits: Limits) -> bytes:
    """The body of a request, refused before it is read where its size is known.

    Args:
        receive (`Receive`): of ASGI.
        headers (`Mapping[str, str]`): of the request.
        limits ([`Limits`]): of its size, and of the time between two parts.

    Raises:
        GatewayError: it is too large, is not of the length that it says, or stops coming.
    """
    too_large = GatewayError(413, "too_large", f"A request has at most {limits.body:,} bytes.")
    said = headers.get("content-length")
    if said is not None and (not said.isdecimal() or int(said) > limits.body):
        raise too_large
    parts: list[bytes] = []
    size = 0
    more = True
    try:
        while more:
            async with timeout(limits.body_seconds):
                received = await receive()
            if received["type"] == "http.disconnect":
                left = f"The connection closed after {size:,} bytes of the body."
                raise GatewayError(400, "incomplete_body", left)
            part, more = received.get("body", b""), received.get("more_body", False)
            size += len(part)
            if size > limits.body:
                raise too_large
            parts.append(part)
        return b"".join(parts)
    except TimeoutError:
        message = f"The body stopped after {size:,} bytes for {limits.body_seconds:g} s."
        raise GatewayError(408, "request_timeout", message) from None
