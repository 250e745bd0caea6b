"""One request to an expert's server: done by its deadline, of so many bytes at most, and sent to that server alone."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from typing import Any

import httpx2
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

from .addresses_ir3de import check_address, is_loopback

MOST_BYTES = 16 << 20  # of an answer whose length nobody bounded
_MOST_LINE = 1 << 20  # bytes of a line of a stream
_MOST_ERROR = 64 << 10  # bytes that are read of an error's text
_BYTES = 4096  # that a token may take in an answer: its text, the JSON around it, log probabilities


def most_bytes(max_tokens: int | None) -> int:
    """How many bytes an answer may have: no more than its tokens could take."""
    return MOST_BYTES if max_tokens is None else min(MOST_BYTES, (64 << 10) + _BYTES * max_tokens)


class BoundedClient(InferenceClient):
    """
    huggingface_hub's client of chat and text servers, with requests that end.

    Args:
        timeout (`float`): seconds that are left for the whole of a request.
        limit (`int`): bytes that an answer may have.
        public (`bool`): send nothing to a server whose address is not public, whatever its name stood for before.
        kwargs (*optional*): of [`~huggingface_hub.InferenceClient`].

    Raises:
        RuntimeError: huggingface_hub has changed so that requests would not go through here.
    """

    def __init__(self, timeout: float, limit: int, public: bool = False, **kwargs: Any) -> None:
        if not hasattr(InferenceClient, "_inner_post"):
            raise RuntimeError("This huggingface_hub sends requests in a new way: install an earlier version.")
        super().__init__(timeout=timeout, **kwargs)
        self._end = time.monotonic() + timeout
        self._limit = limit
        self._public = public

    def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
        """The answer's bytes, or its lines as they come."""
        parameters = request_parameters
        request = httpx2.Request(
            "POST", parameters.url, json=parameters.json, content=parameters.data, headers=parameters.headers
        )
        host = request.url.raw_host.decode("ascii")
        watch = _Watch(float(self.timeout or 0), self._end, host if self._public else None)
        pieces = self.exit_stack.enter_context(_answered(request, watch, self._limit))
        if stream:
            return _lines(pieces)
        try:
            return b"".join(pieces)
        finally:
            self.exit_stack.close()


@contextmanager
def _answered(request: httpx2.Request, watch: _Watch, limit: int) -> Iterator[Iterator[bytes]]:
    """The pieces of a server's answer. Leaving the `with` block closes the connection."""
    request.headers["accept-encoding"] = "identity"  # what is compressed has no length before it is read
    with ExitStack() as stack:
        stack.enter_context(watch)
        request.extensions = {**request.extensions, "timeout": watch.timeouts(), "trace": watch.trace}
        # A proxy stands between here and a server elsewhere, never in front of one on this machine.
        own = httpx2.Client(
            follow_redirects=False, trust_env=not is_loopback(request.url.host.strip("[]")), verify=_certificates()
        )
        client = stack.enter_context(own)
        with watch.told():
            response = client.send(request, stream=True)
        stack.callback(response.close)
        _check(response, watch)
        yield _bounded(response, watch, limit)


def _check(response: httpx2.Response, watch: _Watch) -> None:
    """Raises where the server answers with an error, sends elsewhere, or compresses what it was asked not to."""
    if response.is_redirect:
        where = str(response.headers.get("location", "elsewhere"))[:200]
        raise ValueError(f"the server sends elsewhere, to {where}: if that is right, give that URL as `endpoint`")
    if response.is_error:
        text = b""
        with suppress(ConnectionError):
            for piece in _bounded(response, watch, _MOST_ERROR):
                text += piece
        headers = {key: value for key, value in response.headers.items() if key != "content-encoding"}
        whole = httpx2.Response(response.status_code, headers=headers, content=text, request=response.request)
        try:
            hf_raise_for_status(whole)
        except HfHubHTTPError as error:
            # Of JSON without an `error`, such as {"detail": ...}, that says nothing.
            if not error.server_message and "html" not in headers.get("content-type", ""):
                error.append_to_message(f"\n{whole.text}")
            raise
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ConnectionError("the server compressed its answer, which it was asked not to")


def _bounded(response: httpx2.Response, watch: _Watch, limit: int) -> Iterator[bytes]:
    """The pieces of an answer as long as there are not too many bytes of them."""
    size = 0
    with watch.told():
        for piece in response.iter_raw():
            size += len(piece)
            if size > limit:
                raise ConnectionError(f"the server's answer has more than {limit:,} bytes")
            yield piece


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """The lines of an event stream, the last one too where no line break ends it."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode("utf-8", "replace")
        if len(rest) > _MOST_LINE:
            raise ConnectionError(f"a line of the server's answer has more than {_MOST_LINE:,} bytes")
    if rest:
        yield rest.decode("utf-8", "replace")


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """Whose servers are trusted; read once, as it takes longer than a short answer."""
    return httpx2.create_ssl_context()


class _Watch:
    """
    Ends a connection at its deadline, whatever the server sends until then. The HTTP library's timeouts begin anew with
    each byte that comes.

    Args:
        timeout (`float`): seconds that the whole was given, for the message.
        end (`float`): when it must be over, of `time.monotonic`.
        public (`str`, *optional*): the host whose address must be public. A name may stand for another address than a
            moment ago, so it is the address of the connection that is looked at, before anything is sent.
    """

    def __init__(self, timeout: float, end: float, public: str | None = None) -> None:
        self._timeout, self._end = timeout, end
        self._public, self._host = public, ""
        self._copy: socket.socket | None = None
        self._over = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(max(0.0, end - time.monotonic()), self._stop)
        self._timer.daemon = True

    def __enter__(self) -> _Watch:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._copy is not None:
                self._copy.close()
                self._copy = None

    def timeouts(self) -> dict[str, float]:
        """Those of the HTTP library."""
        left = max(0.001, self._end - time.monotonic())
        return dict.fromkeys(("connect", "read", "write", "pool"), left)

    def trace(self, event: str, details: dict[str, Any]) -> None:
        """Takes a copy of the handle of a connection that was made, since encryption will take the handle itself.

        Raises:
            ValueError: its address is not public, and it must be.
        """
        if event == "connection.connect_tcp.started":
            self._host = details["host"]  # a proxy's, where one stands between: its address is the owner's choice
        if event != "connection.connect_tcp.complete":
            return
        stream = details["return_value"]
        if self._host == self._public:
            try:
                check_address(self._host, stream.get_extra_info("server_addr")[0])
            except ValueError:
                stream.close()
                raise
        with self._lock:
            self._copy = stream.get_extra_info("socket").dup()
        if self._over:
            self._stop()

    def _stop(self) -> None:
        with self._lock:
            self._over = True
            if self._copy is not None:
                with suppress(OSError):  # closed by the server already
                    self._copy.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def told(self) -> Iterator[None]:
        """What goes wrong because time is up is told as that."""
        try:
            yield
        except (httpx2.TransportError, OSError) as error:
            if self._over or isinstance(error, httpx2.TimeoutException):
                raise TimeoutError(f"no complete answer within {self._timeout:g} s") from None
            if isinstance(error, httpx2.TransportError):
                raise ConnectionError(f"{type(error).__name__}: {error}") from None
            raise
        if self._over:  # an end that the deadline made looks to some protocols like the server's
            raise TimeoutError(f"no complete answer within {self._timeout:g} s")
