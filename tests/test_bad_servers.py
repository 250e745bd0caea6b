"""Servers that stall, ping, flood, or never end a line: each is left in time, with little memory, its socket closed."""

import gzip
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from ir3de.experts_ir3de import ExpertPool
from ir3de.gateway.attempts import Patience
from ir3de.remote_experts_ir3de import RemoteModel
from ir3de.specs_ir3de import ExpertSpec

from . import tiny
from .gateway_world import HASTY, LAW, world
from .test_remote_experts import chunk, completion

TIMEOUT = 1.0  # seconds
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
PADDING = b"x" * 65536


class BadServer:
    """Answers each connection by a function of its socket."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.asked = self.open = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def wait_closed(self) -> bool:
        """Whether every connection is closed within a second, by the other side."""
        end = time.monotonic() + 1
        while self.open and time.monotonic() < end:
            time.sleep(0.01)
        return not self.open

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with self._lock:
                    self.asked += 1
                    self.open += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with suppress(OSError):
                self._answer(connection)
                connection.settimeout(20)
                while connection.recv(65536):
                    pass
        finally:
            connection.close()
            with self._lock:
                self.open -= 1


@contextmanager
def bad(answer: Callable[[socket.socket], None]) -> Iterator[BadServer]:
    server = BadServer(answer)
    try:
        yield server
    finally:
        server.close()


def repeat(piece: bytes, pause: float = 0.0, head: bytes = HEAD) -> Callable[[socket.socket], None]:
    """Sends a head and then a piece again and again."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            time.sleep(pause)

    return answer


def read_first(answer: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    def after(connection: socket.socket) -> None:
        connection.recv(65536)
        answer(connection)

    return after


BOMB = gzip.compress(bytes(64 << 20), compresslevel=1)


def bomb(connection: socket.socket) -> None:
    connection.sendall(whole(BOMB, "200 OK\r\ncontent-encoding: gzip"))


def whole(body: bytes, status: str = "200 OK") -> bytes:
    """A response with its length."""
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


SLOW = {
    "never accepts a word": lambda connection: None,
    "a header, byte by byte": repeat(b"x", 0.05, b"HTTP/1.1 200 OK\r\nx: "),
    "pings": repeat(b": ping\n\n", 0.05),
    "spaces before JSON": repeat(b" ", 0.05, b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"),
    "empty pieces": repeat(chunk(""), 0.05),
    "a line, byte by byte": repeat(b"x", 0.05, HEAD + b"data: "),
    "half an answer": lambda connection: connection.sendall(HEAD + chunk("a jury")),
}
FLOODS = {
    "endless line": repeat(PADDING, 0.0, HEAD + b"data: "),
    "endless comments": repeat(b": " + PADDING + b"\n\n"),
    "endless body": repeat(PADDING, 0.0, b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"),
    "endless header": repeat(PADDING, 0.0, b"HTTP/1.1 200 OK\r\nx: "),
    "endless headers": repeat(b"x: " + b"y" * 1000 + b"\r\n", 0.0, b"HTTP/1.1 200 OK\r\n"),
    "endless error": repeat(PADDING, 0.0, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "a compressed bomb": bomb,
    "large pieces": repeat(chunk("x" * 500_000)),
}

# The gateway passes a compressed answer on as it is, and that one is small and whole.
THROUGH = {name: answer for name, answer in {**SLOW, **FLOODS}.items() if answer is not bomb}


def ask(url: str, stream: bool, **options: object) -> tuple[object, float, int]:
    """What comes of asking, the seconds it took, and by how many bytes memory peaked."""
    model = RemoteModel({"name": "law", "endpoint": url, "timeout": TIMEOUT}, retries=2)
    tracemalloc.start()
    start = time.monotonic()
    try:
        if stream:
            result: object = "".join(model.stream("Why?", {"max_new_tokens": 64, **options}))
        else:
            [result] = model.generate(["Why?"], None, {"max_new_tokens": 64, **options})
    except Exception as error:
        result = error
    took = time.monotonic() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, took, peak


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("answer", SLOW.values(), ids=SLOW)
def test_a_server_that_keeps_us_waiting_is_left_in_time(answer: Callable[[socket.socket], None], stream: bool) -> None:
    with bad(read_first(answer)) as server:
        result, took, _ = ask(server.url, stream)
        assert isinstance(result, TimeoutError), result
        assert "within 1 s" in str(result)
        assert TIMEOUT - 0.1 <= took < TIMEOUT + 1
        assert server.asked == 1, "what is slow gets no second chance"
        assert server.wait_closed()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("answer", FLOODS.values(), ids=FLOODS)
def test_a_server_that_floods_is_left_in_time_and_takes_little_memory(
    answer: Callable[[socket.socket], None], stream: bool
) -> None:
    with bad(read_first(answer)) as server:
        result, took, peak = ask(server.url, stream)
        assert isinstance(result, Exception)
        assert took < TIMEOUT + 1
        assert peak < 50 << 20
        assert server.wait_closed()
        print(f"{took:.2f} s, {peak / 2**20:.1f} MiB: {type(result).__name__}: {str(result)[:100]}")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("answer", THROUGH.values(), ids=THROUGH)
def test_the_gateway_leaves_a_bad_server_in_time_with_little_memory(
    answer: Callable[[socket.socket], None], stream: bool
) -> None:
    with bad(read_first(answer)) as server:
        specs = {"law": {"endpoint": server.url, "timeout": TIMEOUT}}
        settings = HASTY._replace(patience=Patience(retries=0, wait=0.01))
        with world(specs, settings, names=("code", "math")) as made:
            asked = {"model": "ir3de", "messages": LAW, "max_tokens": 9, "stream": stream}
            tracemalloc.start()
            start = time.monotonic()
            try:
                with socket.create_connection(("127.0.0.1", made.port), timeout=TIMEOUT + 5) as client:
                    body = json.dumps(asked).encode()
                    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
                    client.sendall(f"{head}connection: close\r\n\r\n".encode() + body)
                    while client.recv(65536):  # and keeps nothing, since its memory is measured too
                        pass
                took, peak = time.monotonic() - start, tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert took < TIMEOUT + 1
            assert peak < 50 << 20, f"{peak:,} bytes"
            assert server.wait_closed()


@pytest.mark.parametrize("piece", [b": ping\n\n", chunk("a ")], ids=["comments", "words"])
def test_the_gateway_ends_a_stream_that_its_server_never_ends_also_without_a_timeout_in_the_spec(piece: bytes) -> None:
    assert HASTY.timeouts.longest == 3600, "the default leaves agents an hour"
    with bad(read_first(repeat(piece, 0.05))) as server:
        settings = HASTY._replace(timeouts=HASTY.timeouts._replace(longest=TIMEOUT))
        with world({"law": {"endpoint": server.url}}, settings, names=("code", "math")) as made:
            start = time.monotonic()
            answer = made.ask(stream=True, max_tokens=9).body
            assert TIMEOUT - 0.1 <= time.monotonic() - start < TIMEOUT + 1
            assert b"The expert failed in the middle of its answer: no answer in time." in answer
            assert server.wait_closed()


def test_the_smaller_of_the_timeouts_counts() -> None:
    with bad(read_first(repeat(b": ping\n\n", 0.05))) as server:
        for of_spec, of_call in ((0.4, 30), (30, 0.4)):
            spec: ExpertSpec = {"name": "law", "endpoint": server.url, "timeout": of_spec}
            pool = ExpertPool(tiny.router({"law": spec}).config)
            start = time.monotonic()
            [answer] = pool.generate("law", ["Why?"], None, timeout=of_call)
            assert isinstance(answer, TimeoutError)
            with pytest.raises(TimeoutError, match=r"within 0\.4 s"):
                list(pool.stream("law", "Why?", timeout=of_call))
            assert time.monotonic() - start < 2


def test_a_stream_that_is_not_read_ends_too() -> None:
    with bad(read_first(repeat(chunk("a "), 0.05))) as server:
        pieces = RemoteModel({"name": "law", "endpoint": server.url, "timeout": TIMEOUT}).stream("Why?", {})
        assert next(pieces) == "a "
        time.sleep(TIMEOUT + 0.3)
        assert server.wait_closed()
        with pytest.raises(TimeoutError):
            list(pieces)


def test_a_reader_who_leaves_closes_the_socket() -> None:
    with bad(read_first(lambda connection: connection.sendall(HEAD + chunk("a ")))) as server:
        pieces = RemoteModel({"name": "law", "endpoint": server.url, "timeout": 30}).stream("Why?", {})
        assert next(pieces) == "a "
        pieces.close()  # type: ignore[attr-defined]
        assert server.wait_closed()


def test_an_answer_has_no_more_pieces_than_tokens_were_asked_for() -> None:
    with bad(read_first(repeat(chunk("a "), 0.001))) as server:
        result, took, _ = ask(server.url, stream=True, max_new_tokens=5)
        assert result == "a a a a a "
        assert took < TIMEOUT
        assert server.wait_closed()


def test_attempts_share_the_time_for_an_answer() -> None:
    error = whole(b"{}", "503 Busy\r\nretry-after: 15")
    with bad(read_first(lambda connection: connection.sendall(error))) as server:
        result, took, _ = ask(server.url, stream=False)
        assert "503" in str(result)
        assert took < TIMEOUT


def test_a_server_that_sends_elsewhere_is_told_of_and_not_followed() -> None:
    with bad(read_first(lambda connection: connection.sendall(whole(completion("not me"))))) as other:
        answer = whole(b"", f"307 Go\r\nlocation: {other.url}/chat/completions")
        with bad(read_first(lambda connection: connection.sendall(answer))) as server:
            result, _, _ = ask(server.url, stream=False)
            assert "sends elsewhere" in str(result)
            assert (server.asked, other.asked) == (1, 0)


def test_a_server_here_is_asked_without_a_proxy_and_while_the_hub_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    with bad(read_first(lambda connection: connection.sendall(whole(completion("a jury"))))) as server:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert ask(server.url, stream=False)[0] == "a jury"
        [result] = RemoteModel({"name": "law", "provider": "auto", "model": "org/a"}).generate(["Why?"], 1, {})
        assert "HF_HUB_OFFLINE" in str(result)
