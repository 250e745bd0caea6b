"""Connections that would hold the server up: heads and trailers without end, answers that nobody reads, too many."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_BYTES = 64 << 10
_HEAD_SECONDS = 20.0
_READING_SECONDS = 120.0
_SPARE_DESCRIPTORS = 64  # of the process itself: its files, its log
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class _HeadWithBody:
    """A connection on which the head of an answer goes out with what follows it in the same turn of the loop, in one
    piece: that saves this process a call of the system, and the client an awakening.

    Args:
        transport (`asyncio.Transport`): of the connection.
        loop (`asyncio.AbstractEventLoop`): that serves it.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Sends bytes; those of a head not later than the loop's next turn."""
        if data.startswith(b"HTTP/") and not self._head:
            self._head = data
            self._loop.call_soon(self._send)
        else:
            self._send(data)

    def close(self) -> None:
        """Closes the connection once all is sent."""
        self._send()
        self._transport.close()

    def _send(self, data: bytes = b"") -> None:
        head, self._head = self._head, b""
        if head or data:
            self._transport.write(head + data)


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, with limits that it lacks: on what a request says beside its body (its head, the
    sizes and trailers of a body that comes in chunks), and on how long a client may read nothing of its answer.
    """

    _beside_body = 0  # bytes, since the request began or since the last of its body
    _in_head = True
    _timer: asyncio.TimerHandle | None = None
    _reading_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for a first request, not for ever."""
        super().connection_made(cast("asyncio.Transport", _HeadWithBody(transport, self.loop)))
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        self._stop_waiting()
        self._stop_waiting_for_reading()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what belongs to no body."""
        self._beside_body += len(data)
        super().data_received(data)
        if self._beside_body > _HEAD_BYTES:
            self._refuse(_TOO_LARGE)
        elif self._in_head and self._timer is None:  # few heads come in pieces, and a timer takes a while to make
            self._wait()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head, self._beside_body = True, 0
        self._stop_waiting()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is complete; a body has limits of its own."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body; what comes beside it is counted anew."""
        self._beside_body = 0
        super().on_body(body)

    def pause_writing(self) -> None:
        """The client reads more slowly than its answer comes. Once it has read nothing for long it is cut, which frees
        its expert as where a client leaves.
        """
        super().pause_writing()
        self._wait_for_reading()

    def resume_writing(self) -> None:
        """The client has read."""
        self._stop_waiting_for_reading()
        super().resume_writing()

    def _wait_for_reading(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._reading_timer = self.loop.call_later(_READING_SECONDS, self._cut_unless_read, unread)

    def _cut_unless_read(self, unread: int) -> None:
        """Cuts the client where all that was unread still is: of a large piece one may read for long before writing is
        resumed, which the transport does only when little is left.
        """
        if self.transport.get_write_buffer_size() < unread:
            self._wait_for_reading()
        else:
            self.transport.abort()

    def _stop_waiting_for_reading(self) -> None:
        if self._reading_timer is not None:
            self._reading_timer.cancel()
            self._reading_timer = None

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(_HEAD_SECONDS, self._refuse, _TOO_SLOW)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, answer: bytes) -> None:
        """Closes the connection, with an answer where none has begun that it would be mixed up with."""
        if self.transport.is_closing():
            return
        cycle = self.cycle  # of the request whose head is complete; in the next one's head the one before
        if cycle is None or (cycle.response_complete if self._in_head else not cycle.response_started):
            self.transport.write(answer)
        self.transport.close()


def room_for_connections() -> int | None:
    """How many clients may be connected at once: half of the descriptors, since each may need one to an expert too.

    The limit on descriptors is raised as far as this process may raise it.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return None
    most: Any = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 1 << 20 if most == resource.RLIM_INFINITY else most
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return max(8, (wanted - _SPARE_DESCRIPTORS) // 2)
