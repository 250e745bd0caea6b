"""What one request may take, how long an expert may take, and the reading of a body within that."""

from __future__ import annotations

from typing import NamedTuple

from starlette.requests import ClientDisconnect, Request

from .clock import timeout
from .errors import GatewayError


class Limits(NamedTuple):
    """
    What one request may take, and how many may be under way.

    Args:
        body (`int`): bytes of a request.
        messages (`int`): of a conversation.
        tools (`int`): that a request describes.
        characters (`int`, *optional*): of all messages for an expert on this machine together.
        max_tokens (`int`): that an expert on this machine may be asked for; a server has limits of its own.
        default_tokens (`int`): that it generates where the request does not say.
        seconds (`int`): that an answer of an expert on this machine may take.
        at_once (`int`): answers that are made on this machine at the same time.
        waiting (`int`): requests that wait for their turn there; further ones get status 429.
        body_seconds (`float`): between two parts of a request's body.
    """

    body: int = 8 << 20
    messages: int = 2_000
    tools: int = 1_024
    characters: int | None = None
    max_tokens: int = 16_384
    default_tokens: int = 1_024
    seconds: int = 600
    at_once: int = 4
    waiting: int = 64
    body_seconds: float = 30.0


class Timeouts(NamedTuple):
    """
    Seconds that an expert behind a server may take.

    Args:
        connect (`float`): to accept the connection.
        first_byte (`float`): to begin its answer, which of an answer in one piece is all of it. The `timeout` of an
            expert's spec stands for this one.
        idle (`float`): between two pieces of its answer.
    """

    connect: float = 10.0
    first_byte: float = 600.0
    idle: float = 120.0


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
