"""What one request may take, and how long an expert behind a server may take."""

from __future__ import annotations

from typing import NamedTuple


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
        images (`int`): of a conversation for an expert on this machine.
        pixels (`int`): of all of them together.
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
    images: int = 20
    pixels: int = 50_000_000


class Timeouts(NamedTuple):
    """
    Seconds that an expert behind a server may take.

    Args:
        connect (`float`): to accept the connection.
        first_byte (`float`): to begin its answer, which of an answer in one piece is all of it. The `timeout` of an
            expert's spec stands for this one, and for `longest` too.
        idle (`float`): between two pieces of its answer.
        longest (`float`): until the end of its answer, whatever keeps the line alive until then.
    """

    connect: float = 10.0
    first_byte: float = 600.0
    idle: float = 120.0
    longest: float = 3600.0
