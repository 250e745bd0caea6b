"""Connections that would hold the server up: heads that never end, and more of them than there is room for."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_BYTES = 64 << 10
_HEAD_SECONDS = 20.0
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
    """uvicorn's protocol on httptools, with limits on the head of a request, for which that has none."""

    _head_bytes = 0
    _in_head = True
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for a first request, not for ever."""
        super().connection_made(cast("asyncio.Transport", _HeadWithBody(transport, self.loop)))
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what belongs to a head."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > _HEAD_BYTES:
            self._refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head, self._head_bytes = True, 0
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is complete; a body has limits of its own."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(_HEAD_SECONDS, self._refuse, _TOO_SLOW)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, answer: bytes) -> None:
        if not self.transport.is_closing():
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
