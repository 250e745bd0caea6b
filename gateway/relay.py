"""An expert's answer on its way to the client: the same bytes, as they come."""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

from starlette.types import Send

from .apis import Api
from .errors import GatewayError
from .exchange import Exchange
from .forward import ExpertFailed, Headers
from .presence import Presence

_OBJECT = re.compile(rb"\A[ \t\r\n]*\{")  # that an answer in one piece is
_OBJECT_OF_EVENT = re.compile(rb"(?:^|[\r\n])data: ?\{")
_LONGEST_EVENT = 1 << 20  # bytes; what is longer is passed on in parts


class Reply(Protocol):
    """
    An answer that has begun, wherever it is made.

    Args:
        status (`int`): of HTTP.
        headers (`Headers`): that go to the client.
        is_events (`bool`): whether it is a stream of events.
        is_coded (`bool`): whether it is compressed.
        first (`bytes`): its beginning.
        complete (`bool`): whether that is all.
    """

    status: int
    headers: Headers
    is_events: bool
    is_coded: bool
    first: bytes
    complete: bool

    @property
    def counted(self) -> tuple[int, int]:
        """Tokens of prompt and answer, where they are made on this machine; else zeros."""

    async def read(self) -> bytes:
        """The next piece; empty at the end."""

    def close(self) -> None:
        """Stops what is left of it."""


class Events:
    """Whole events of a stream: the beginning of one is held until its end has come."""

    def __init__(self) -> None:
        self._held = b""

    def complete(self, part: bytes) -> bytes:
        """Takes the next bytes of a stream; returns those up to the end of an event."""
        part = self._held + part
        end = max(part.rfind(b"\n\n") + 2, part.rfind(b"\r\n\r\n") + 4, part.rfind(b"\r\r") + 2)
        if end < 4:  # found nowhere
            end = len(part) if len(part) > _LONGEST_EVENT else 0
        self._held = part[end:]
        return part[:end]

    def rest(self) -> bytes:
        """What a stream ends with that is no whole event."""
        rest, self._held = self._held, b""
        return rest


async def relay(
    reply: Reply,
    api: Api,
    head: Headers,
    details: dict[str, Any] | None,
    send: Send,
    presence: Presence,
    exchange: Exchange,
) -> None:
    """Sends an answer to the client.

    Args:
        reply ([`Reply`]): that has begun.
        api ([`Api`]): whose form an error has.
        head (`Headers`): beside those of the reply.
        details (`dict`, *optional*): the route, to be put into the answer.
        send (`Send`): of ASGI.
        presence ([`Presence`]): of the client.
        exchange ([`Exchange`]): where it is noted how it went.

    Raises:
        ExpertFailed: an answer in one piece broke off, so that the client must see its connection close.
    """
    events = Events() if reply.is_events and not reply.is_coded else None
    part = events.complete(reply.first) if events else reply.first
    if events is None:
        if details is not None and _is_json(reply):
            part = with_details(part, details, _OBJECT)
        details = None
    headers = [*reply.headers, *head]
    if reply.complete and events is None:
        headers.append((b"content-length", b"%d" % len(part)))
    exchange.first_byte_seconds = exchange.seconds
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    try:
        while not reply.complete:
            if part:
                exchange.read_usage(part)
                exchange.written.add(part, reply.is_coded)
                exchange.sent = part
                if details is not None and (told := with_details(part, details, _OBJECT_OF_EVENT)) is not part:
                    part, details = told, None
                await send({"type": "http.response.body", "body": part, "more_body": True})
            part = await reply.read()
            part = events.complete(part) if events else part
        part += events.rest() if events else b""
    except GatewayError as refusal:  # an expert on this machine finds late that it cannot do what is asked
        exchange.outcome = "refused"
        part = api.error_event(refusal, exchange.sent)
    except ExpertFailed as failure:
        if events is None:
            raise
        exchange.outcome = "broken"
        exchange.failures.append((exchange.expert, f"{failure.why} in the middle of its answer"))
        message = f"The expert failed in the middle of its answer: {failure.why}."
        part = api.error_event(GatewayError(502, "expert_failed", message), exchange.sent)
    exchange.read_usage(part)
    if events or not exchange.completion_tokens:
        exchange.written.add(part, reply.is_coded)
    if details is not None:
        part = with_details(part, details, _OBJECT_OF_EVENT)
    presence.release()
    await send({"type": "http.response.body", "body": part, "more_body": False})


def with_details(part: bytes, details: dict[str, Any], place: re.Pattern[bytes]) -> bytes:
    """A part of an answer with the field `ir3de` put first in a JSON object; the part itself if there is none.

    Args:
        part (`bytes`): of the answer.
        details (`dict`): that the field is to hold.
        place (`re.Pattern`): what the object begins with.
    """
    found = place.search(part)
    if found is None:
        return part
    rest = part[found.end() :]
    comma = b"" if rest.lstrip().startswith(b"}") else b","
    return part[: found.end()] + b'"ir3de":' + json.dumps(details).encode() + comma + rest


def _is_json(reply: Reply) -> bool:
    """Whether an answer in one piece is JSON, and can be written into."""
    return not reply.is_coded and any(name == b"content-type" and b"json" in value for name, value in reply.headers)
