"""Running the gateway: keys and their limits, logs, worker processes, stops, and clients that mean harm."""

import asyncio
import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from aiohttp import web

from ir3de.gateway import guard, workers
from ir3de.gateway.errors import GatewayError
from ir3de.gateway.keys import Key, Keys, new_key, read_keys
from ir3de.gateway.limits import Limits
from ir3de.gateway.loading import allowed_hosts
from ir3de.gateway.server import Service, make_application
from ir3de.gateway.settings import Settings
from ir3de.scripts import serve
from ir3de.scripts.bench.stand_in import Received, StandIn, chat_chunks, respond

from . import tiny
from .gateway_world import HASTY, LAW, World, command, post, world
from .test_gateway_watch import hashed, routers

# Keys.


KEYS = (
    Key("ann", hashed("of-ann")),
    Key("bob", hashed("of-bob"), requests_per_minute=3),
    Key("eve", hashed("of-eve"), tokens_per_minute=20),
    Key("root", hashed("of-root"), admin=True),
)


@pytest.fixture
def locked() -> Iterator[World]:
    """A gateway that asks for keys."""
    with world(settings=HASTY._replace(keys=KEYS)) as made:
        yield made


def test_a_key_lets_in_and_its_name_is_in_the_log(locked: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ir3de.requests"):
        assert locked.ask(headers={"authorization": "Bearer of-ann"}).status == 200
        assert locked.ask("messages", max_tokens=5, headers={"x_api_key": "of-ann"}).status == 200
        logged: list[str] = []

        def both() -> bool:
            """Whether both requests are logged: the second is once its answer was sent."""
            logged[:] = [record.getMessage() for record in caplog.records if record.name == "ir3de.requests"]
            return len(logged) >= 2

        locked.wait(both, "two lines")
    lines = [json.loads(line) for line in logged]
    assert [line["caller"] for line in lines] == ["ann", "ann"]
    assert lines[0]["expert"] == "law"
    assert lines[0]["prompt_tokens"] == 11
    assert "court" not in caplog.text
    assert "of-ann" not in caplog.text


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "of-ann"}, {"x_api_key": ""}]
)
def test_without_a_key_nothing_is_answered(locked: World, headers: dict[str, str]) -> None:
    for api in ("chat/completions", "responses"):
        answered = locked.ask(api, headers=headers)
        assert (answered.status, answered.code) == (401, "invalid_api_key")
    assert locked.ask("messages", headers=headers).json["error"]["type"] == "authentication_error"
    assert locked.send("GET", "/v1/models", **headers).status == 401
    assert locked.send("POST", "/v1/embeddings", {}, **headers).status == 401
    assert locked.send("GET", "/health").status == 200
    assert not any(server.received for server in locked.behind.values())


def test_a_key_has_limits_of_its_own(locked: World) -> None:
    bob = {"authorization": "Bearer of-bob"}
    assert [locked.ask(headers=bob).status for _ in range(4)] == [200, 200, 200, 429]
    refused = locked.ask(headers=bob)
    assert refused.code == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    eve = {"authorization": "Bearer of-eve"}
    assert [locked.ask(headers=eve).status for _ in range(3)] == [200, 200, 429], "18 tokens each"
    assert locked.ask(headers={"authorization": "Bearer of-ann"}).status == 200


def test_what_was_spent_grows_back() -> None:
    now = 0.0
    keys = Keys([Key("bob", hashed("b"), requests_per_minute=2, tokens_per_minute=100)], lambda: now)
    headers = {"authorization": "Bearer b"}
    assert [keys.admit(headers) for _ in range(2)] == ["bob", "bob"]
    with pytest.raises(GatewayError) as refused:
        keys.admit(headers)
    assert refused.value.retry_after == pytest.approx(30)
    now = 30.0
    keys.admit(headers)
    keys.spent("bob", 1000)
    now = 90.0
    with pytest.raises(GatewayError, match="tokens of the minute"):
        keys.admit(headers)
    now = 90.0 + 600
    keys.admit(headers)


def test_worker_processes_count_together(tmp_path: Path) -> None:
    """As many as all may send get in, whichever process they come to and however many come at once."""
    keys = [Key("bob", hashed("b"), requests_per_minute=100, tokens_per_minute=500), Key("eve", hashed("e"), 7)]
    processes = [Keys(keys, lambda: 1000.0, tmp_path / "limits") for _ in range(4)]

    def admitted(number: int) -> bool:
        with suppress(GatewayError):
            return processes[number % 4].admit({"authorization": "Bearer b"}) == "bob"
        return False

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(admitted, range(300))) == 100
    later = [Keys(keys, lambda: 1060.0, tmp_path / "limits") for _ in range(2)]
    for worker in later:
        worker.admit({"x-api-key": "b"})
        worker.spent("bob", 300)
    with pytest.raises(GatewayError, match="tokens of the minute"):
        later[0].admit({"x-api-key": "b"})
    assert [worker.admit({"x-api-key": "e"}) for worker in processes + later[:1]] == ["eve"] * 5, "its own"


def test_a_wrong_key_takes_as_long_as_a_right_one() -> None:
    """Every key is compared whole, whichever matches."""
    keys = Keys([Key(str(index), hashed(str(index))) for index in range(300)])

    def took(key: str) -> float:
        times = []
        for _ in range(60):
            began = time.perf_counter()
            with suppress(GatewayError):
                keys.check_admin({"authorization": f"Bearer {key}"})
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    first, last, wrong = took("0"), took("299"), took("wrong")
    assert max(first, last, wrong) < 2 * min(first, last, wrong)


def test_keys_are_read_from_lines_and_a_key_itself_is_refused() -> None:
    key, line = new_key("ann")
    [read] = read_keys(line + "\n\n", "keys.jsonl")
    assert read == Key("ann", hashed(key))
    for bad, said in (
        ("{", "line 1: it is not JSON"),
        ("[]", "line 1: a key is an object"),
        ('{"name": "a", "sha256": "ir3de-secret"}', "never the key itself"),
        (f'{{"name": "", "sha256": "{hashed("a")}"}}', "`name`"),
        (line + "\n" + line, "two keys have one name"),
        (json.dumps({**json.loads(line), "tokens_per_minute": 0}), "`tokens_per_minute`"),
        (json.dumps({**json.loads(line), "admin": "yes"}), "`admin`"),
        ("", "keys.jsonl holds no key"),
        (" \n\n", "keys.jsonl holds no key"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)) as refused:
            read_keys(bad, "keys.jsonl")
        assert "secret" not in str(refused.value)


def test_keys_that_are_named_and_not_there_let_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty secret, mounted or in the environment, must not open the gateway to everybody."""
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no key"):
        serve.main([str(tmp_path), "--keys", str(empty)])
    monkeypatch.setenv("IR3DE_KEYS", "")
    with pytest.raises(ValueError, match="IR3DE_KEYS holds no key"):
        serve.main([str(tmp_path)])


# Pages of others, and admins.


def test_pages_of_other_origins_are_let_in_by_name_alone(locked: World) -> None:
    asked = {"origin": "https://page.example", "access_control_request_method": "POST"}
    assert "access-control-allow-origin" not in locked.send("OPTIONS", "/v1/chat/completions", **asked).headers
    with world(settings=Settings(cors=("https://page.example",))) as made:
        headers = made.send("OPTIONS", "/v1/chat/completions", **asked).headers
        assert headers["access-control-allow-origin"] == "https://page.example"
        assert "access-control-allow-origin" not in made.ask(headers={"origin": "https://other.example"}).headers


def test_only_an_admin_takes_a_router_back(locked: World) -> None:
    for headers, status in (({}, 401), ({"authorization": "Bearer of-ann"}, 403), ({"x_api_key": "of-root"}, 409)):
        assert locked.send("POST", "/admin/rollback", **headers).status == status
    with world() as open_to_all:
        refused = open_to_all.send("POST", "/admin/rollback")
        assert (refused.status, refused.code) == (403, "forbidden")
        assert "no keys" in refused.json["error"]["message"]


# Clients that mean harm.


def raw(port: int, data: bytes, seconds: float = 5) -> bytes:
    """What comes back of bytes, until the connection closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        try:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(65536), b""))
        except ConnectionError:
            return b""


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A gateway with little patience for half of a request."""
    monkeypatch.setattr(guard, "_HEAD_SECONDS", 0.3)
    settings = Settings(limits=Limits(body_seconds=0.3))
    with world(settings=settings, http=guard.GuardedProtocol) as made:
        yield made


def test_half_of_a_request_is_cut(guarded: World) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
    assert raw(guarded.port, b"").startswith(b"HTTP/1.1 408"), "nothing at all"
    assert raw(guarded.port, head).startswith(b"HTTP/1.1 408"), "half a head"
    answered = raw(guarded.port, head + b'\r\n{"model"')
    assert answered.startswith(b"HTTP/1.1 408"), "half a body"
    assert b"request_timeout" in answered
    assert guarded.ask().status == 200


def test_a_head_without_end_is_cut(guarded: World) -> None:
    lines = b"".join(b"x-%d: %s\r\n" % (number, b"a" * 1000) for number in range(5000))
    answered = raw(guarded.port, b"GET /health HTTP/1.1\r\nhost: x\r\n" + lines)
    assert answered == b"" or answered.startswith(b"HTTP/1.1 431")
    large = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: " + b"a" * 20_000 + b"\r\n\r\n"
    assert raw(guarded.port, large).startswith(b"HTTP/1.1 200")


CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


def chunks(body: bytes, size: int) -> bytes:
    """A body in chunks, without the last one's trailers."""
    parts = [body[place : place + size] for place in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n"


@pytest.mark.parametrize("trailers", [b"x: %s\r\n" % (b"a" * 1000), b"a" * 1000], ids=["many", "one"])
@pytest.mark.parametrize("key", ["of-ann", "wrong"], ids=["awaited", "answered"])
def test_trailers_without_end_are_cut(key: str, trailers: bytes) -> None:
    """Whether the request waits for its body or was answered before it came."""
    head = CHUNKED.replace(b"\r\n\r\n", f"\r\nauthorization: Bearer {key}\r\n\r\n".encode())
    begun = head + chunks(b"{}", 1) + (b"" if trailers.endswith(b"\n") else b"x: ")
    with world(settings=HASTY._replace(keys=KEYS), http=guard.GuardedProtocol) as made:
        with socket.create_connection(("127.0.0.1", made.port), timeout=5) as connection:
            connection.sendall(begun)
            with pytest.raises(ConnectionError):
                connection.sendall(20_000 * trailers)
        with socket.create_connection(("127.0.0.1", made.port), timeout=5) as connection:
            connection.sendall(begun + 60 * trailers)
            time.sleep(0.1)
            connection.sendall(70 * trailers)
            answered = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answered[9:12] == (b"401" if key == "wrong" else b"431")
        assert answered.count(b"HTTP/1.1") == 1


def test_a_body_in_tiny_chunks_with_trailers_is_read(guarded: World) -> None:
    body = json.dumps({"model": "ir3de", "messages": [{"role": "user", "content": "court " * 5000}]}).encode()
    request = CHUNKED + chunks(body, 1) + b"x-sum: 1\r\n\r\n"
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=30) as connection:
        for place in range(0, len(request), 9000):
            connection.sendall(request[place : place + 9000])
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_client_that_stops_reading_frees_its_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that reads slowly keeps it."""

    async def endless(request: web.Request, received: Received) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        event = b'data: {"x": "' + 100_000 * b"a" + b'"}\n\n'
        while True:
            await response.write(event)
            await asyncio.sleep(0)

    monkeypatch.setattr(guard, "_READING_SECONDS", 1.0)
    body = json.dumps({"model": "ir3de", "messages": LAW, "stream": True}).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    with world(responds={"law": endless}, http=guard.GuardedProtocol) as made:
        server = made.behind["law"]
        with socket.create_connection(("127.0.0.1", made.port), timeout=5) as connection:
            connection.sendall(request)
            for _ in range(30):
                assert connection.recv(1 << 20)
                time.sleep(0.05)
            assert server.open == 1
            made.wait(lambda: server.open == 0, "its expert is held")
        text = made.send("GET", "/metrics").body.decode()
        assert "ir3de_requests_inside 0.0" in text
        assert 'expert="law",outcome="left"} 1.0' in text


def test_a_client_that_reads_slowly_but_steadily_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a large answer is written at once, and reading it takes several times the patience with one who stops."""
    monkeypatch.setattr(guard, "_READING_SECONDS", 1.0)
    size = 8 << 20

    async def large(_: web.Request, __: Received) -> web.Response:
        return web.json_response({"choices": [{"index": 0, "message": {"content": size * "a"}}]})

    body = json.dumps({"model": "ir3de", "messages": LAW}).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    read, began = 0, time.monotonic()
    with world(responds={"law": large}, http=guard.GuardedProtocol) as made, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.settimeout(5)
        connection.connect(("127.0.0.1", made.port))
        connection.sendall(request)
        while read < size and (some := connection.recv(1 << 17)):
            read += len(some)
            time.sleep(0.05)
    assert read >= size
    assert time.monotonic() - began > 2.5


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999999999999999", "5, 6"])
def test_a_length_that_is_none_is_refused(guarded: World, length: str) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode()
    assert raw(guarded.port, head)[9:12] in (b"400", b"413")


def test_a_slow_body_that_goes_on_is_read(guarded: World) -> None:
    body = json.dumps({"model": "ir3de", "messages": LAW}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=5) as connection:
        connection.sendall(head.encode())
        for place in range(0, len(body), 10):
            connection.sendall(body[place : place + 10])
            time.sleep(0.06)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_router_of_the_hub_names_no_server_of_a_private_network(monkeypatch: pytest.MonkeyPatch) -> None:
    spec: Any = {"name": "law", "endpoint": "http://127.0.0.1:9/v1"}
    with pytest.raises(ValueError, match="IR3DE_ALLOW_HOSTS"):
        allowed_hosts([spec])
    monkeypatch.setenv("IR3DE_ALLOW_HOSTS", "127.0.0.1")
    assert allowed_hosts([spec]) == ["127.0.0.1"]


# Many at once.


def test_hundreds_of_streams_are_open_at_once() -> None:
    gate = threading.Event()

    async def held(request: web.Request, received: Received) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        first, *rest = chat_chunks(received.json)
        await response.write(first)
        while not gate.is_set():
            await asyncio.sleep(0.05)
        for event in rest:
            await response.write(event)
        await response.write_eof()
        return response

    guard.room_for_connections()
    number = 300
    with world(responds={"law": held}) as made:
        body = json.dumps({"model": "ir3de", "messages": LAW, "stream": True}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        sockets = [socket.create_connection(("127.0.0.1", made.port), timeout=30) for _ in range(number)]
        for each in sockets:
            each.sendall(head.encode() + body)
        made.wait(lambda: made.behind["law"].open == number, "not all of them are open")
        gate.set()
        for each in sockets:
            whole = b"".join(iter(lambda each=each: each.recv(65536), b""))  # type: ignore[misc]
            assert whole.startswith(b"HTTP/1.1 200")
            assert b"data: [DONE]" in whole
            each.close()


# The command.


async def slow(request: web.Request, received: Received) -> web.StreamResponse:
    """A stream of a second or so."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for event in chat_chunks(received.json):
        await response.write(event)
        await asyncio.sleep(0.2)
    return response


def a_worker_dies(process: subprocess.Popen[bytes], url: str, server: StandIn) -> None:
    """Kills one of two workers amid streams; another one takes its place, and no request counts as under way."""
    asked = {"model": "ir3de", "messages": LAW, "stream": True}
    with ThreadPoolExecutor(8) as threads:
        streams = [
            threads.submit(post, f"{url}/v1/chat/completions", asked, authorization="Bearer of-ann") for _ in range(8)
        ]
        while server.open < 8:
            time.sleep(0.01)
        children = psutil.Process(process.pid).children()
        next(child for child in children if "spawn_main" in " ".join(child.cmdline())).kill()
        assert any(stream.exception() is None for stream in streams), "the other one's go on"
    end = time.monotonic() + 60
    while b"ir3de_requests_inside 0.0" not in urllib.request.urlopen(f"{url}/metrics").read():
        assert time.monotonic() < end, "those of the one that died count for ever"
        time.sleep(0.1)


def all_take_back(url: str, server: StandIn) -> None:
    """Takes the router back; the worker that started with the bad one does not serve it either."""
    server.respond = respond
    assert post(f"{url}/admin/rollback", {}, authorization="Bearer of-root")[0] == 200
    time.sleep(2)
    server.received.clear()
    asked = {"model": "ir3de", "messages": LAW}
    assert {post(f"{url}/v1/chat/completions", asked, authorization="Bearer of-ann")[0] for _ in range(20)} == {200}
    assert {received.json["model"] for received in server.received} == {"a-law"}
    server.respond = slow


def test_the_command_serves_with_two_workers_takes_new_routers_and_stops_without_cutting_a_stream(
    tmp_path: Path,
) -> None:
    with StandIn() as server:
        first, second = routers(tmp_path, server.url)
        keys = tmp_path / "keys.jsonl"
        bob_row = {"name": "bob", "sha256": hashed("of-bob"), "requests_per_minute": 2}
        root = {"name": "root", "sha256": hashed("of-root"), "admin": True}
        rows = [{"name": "ann", "sha256": hashed("of-ann")}, bob_row, root]
        keys.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        asked = {"model": "ir3de", "messages": LAW}
        options = ("--keys", str(keys), "--watch", "0.5", "--workers", "2")
        with command(Path(first), *options) as (process, url):
            chat = f"{url}/v1/chat/completions"
            ann = {"authorization": "Bearer of-ann"}
            assert post(chat, asked)[0] == 401
            assert post(chat, asked, **ann)[0] == 200
            assert server.received[-1].json["model"] == "a-law"
            (Path(first) / "config.json").write_bytes((Path(second) / "config.json").read_bytes())
            end = time.monotonic() + 60
            while {received.json["model"] for received in server.received[-20:]} != {"b-law"}:
                assert time.monotonic() < end, "the changed router was not taken by both"
                assert post(chat, asked, **ann)[0] == 200
                time.sleep(0.05)
            with urllib.request.urlopen(f"{url}/metrics") as response:
                text = response.read().decode()
            counted = f'outcome="answered"}} {float(len(server.received))}'
            assert f'ir3de_requests_total{{api="chat/completions",expert="law",{counted}' in text, "of both"

            bob = {"authorization": "Bearer of-bob"}
            answered = [post(chat, asked, **bob)[0] for _ in range(20)]  # over connections that either worker may take
            assert answered.count(200) == 2
            assert set(answered) == {200, 429}

            server.respond = slow
            a_worker_dies(process, url, server)
            all_take_back(url, server)
            with ThreadPoolExecutor(1) as thread:
                stream = thread.submit(post, chat, {**asked, "stream": True}, **ann)
                while not server.open:
                    time.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                status, body = stream.result()
            assert (status, body.endswith(b"data: [DONE]\n\n")) == (200, True)
            process.wait(timeout=60)
        lines = (tmp_path / "stderr").read_text().splitlines()
        logged = [json.loads(line) for line in lines if line.startswith("{")]
        assert {line["outcome"] for line in logged} == {"answered", "invalid_api_key", "rate_limit_exceeded"}
        assert any(line.get("stream") for line in logged)
        assert "court" not in "".join(lines)


def test_what_keeps_workers_from_starting_ends_the_service_with_one_message(tmp_path: Path) -> None:
    first, _ = routers(tmp_path, "http://127.0.0.1:9/v1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    options = ["--default-expert", "art", "--workers", "2", "--port", port]
    arguments = [sys.executable, "-m", "ir3de.scripts.cli", "serve", first, *options]
    ended = subprocess.run(arguments, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    said = "ir3de serve: The default expert 'art' is no expert of this router behind a server."
    assert (ended.returncode, ended.stderr.splitlines()) == (2, [said])


def first_sleeps_then_dies(folder: str) -> None:
    """The work of two workers: the first to come dies, the others wait to be stopped."""
    workers.started(lambda: None, Path(folder))
    (Path(folder) / f"gauge_livesum_{os.getpid()}.db").touch()
    try:
        (Path(folder) / "first").touch(exist_ok=False)
    except FileExistsError:
        (Path(folder) / f"waits-{os.getpid()}").touch()
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_replaced_and_all_end_with_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(workers, "_LOOK", 0.05)

    def stop_once_both_wait() -> None:
        end = time.monotonic() + 60
        while len(list(tmp_path.glob("waits-*"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(stop_once_both_wait)
        workers.run_workers(partial(first_sleeps_then_dies, str(tmp_path)), 2, tmp_path)
    waiting = {int(path.name.partition("-")[2]) for path in tmp_path.glob("waits-*")}
    assert len(waiting) == 2
    assert caplog.text.count("ended with code -9: another one takes its place") == 1
    assert not any(psutil.pid_exists(pid) for pid in waiting)
    left = {int(path.stem.rpartition("_")[2]) for path in tmp_path.glob("gauge_livesum_*")}
    assert left == waiting, "the gauges of the one that died are gone"


def waits(folder: str) -> None:
    """The work of a worker that is never told to stop."""
    (Path(folder) / f"waits-{os.getpid()}").touch()
    time.sleep(600)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    def until(done: Callable[[], bool]) -> bool:
        end = time.monotonic() + 60
        while not done() and time.monotonic() < end:
            time.sleep(0.05)
        return done()

    def alive(pid: int) -> bool:  # one that nobody has waited for yet is not
        try:
            return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    work = partial(waits, str(tmp_path))
    parent = multiprocessing.get_context("spawn").Process(target=workers.run_workers, args=(work, 2, tmp_path))
    parent.start()
    assert until(lambda: len(list(tmp_path.glob("waits-*"))) == 2)
    children = [int(path.name.partition("-")[2]) for path in tmp_path.glob("waits-*")]
    parent.kill()
    parent.join()
    try:
        assert until(lambda: not any(map(alive, children)))
    finally:
        for child in filter(alive, children):
            os.kill(child, signal.SIGKILL)


def test_a_worker_that_could_not_start_beside_one_that_did_is_no_reason_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (tmp_path / "started").touch()
    workers._note_failure(tmp_path, ConnectionError("the Hub is away"))

    class Dead:
        exitcode, pid = 1, 1

    monkeypatch.setattr(workers, "_start", lambda _: Dead())
    assert workers._replace_dead([Dead()], lambda: None, tmp_path)  # type: ignore[list-item]
    workers._raise_failure(tmp_path)  # as where the service is told to stop


def test_a_worker_that_cannot_start_while_others_serve_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ConnectionError("the Hub is away")

    monkeypatch.setattr(workers, "_PAUSE", 0.01)
    assert workers.started(lambda: "served", tmp_path) == "served"
    with pytest.raises(SystemExit) as ended:
        workers.started(fail, tmp_path)
    assert ended.value.code == 1
    assert "the Hub is away" in caplog.text
    assert not (tmp_path / "failed").exists()


def test_without_descriptors_for_more_a_client_is_told_and_those_inside_are_served(tmp_path: Path) -> None:
    with StandIn() as server:
        first, _ = routers(tmp_path, server.url)
        asked = {"model": "ir3de", "messages": LAW, "ir3de": {}}
        options = ("--min-score", "0.999", "--fallback", "math", "--preload")
        with command(Path(first), *options, descriptors=128) as (_, url):
            port = int(url.rpartition(":")[2])
            answered = json.loads(post(f"{url}/v1/chat/completions", asked)[1])
            assert (answered["ir3de"]["expert"], answered["ir3de"]["fallback"]) == ("math", True)
            held = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
            raw_request = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            assert raw(port, raw_request).startswith(b"HTTP/1.1 503")
            held[0].sendall(raw_request)
            for each in held[1:]:
                each.close()
            assert held[0].recv(100)[9:12] in (b"200", b"503")
            held[0].close()
            end = time.monotonic() + 10
            while not raw(port, raw_request).startswith(b"HTTP/1.1 200"):
                assert time.monotonic() < end, "it serves again once they have left"


@pytest.mark.parametrize(
    ("option", "said"), [(("--fallback", "art"), "no expert 'art'"), (("--min-score", "2"), "`min_score`")]
)
def test_a_choice_that_makes_no_sense_is_refused_before_anything_is_served(
    tmp_path: Path, option: tuple[str, str], said: str
) -> None:
    first, _ = routers(tmp_path, "http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match=said):
        serve.main([first, *option])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        *((f"--{name}=-1", "at least") for name in ("body", "messages", "tools", "max-tokens", "at-once", "waiting")),
        *((f"--{name}=-1", "at least") for name in ("images", "pixels", "workers")),
        *((f"--{name}=0", "at least 1") for name in ("body", "messages", "max-tokens", "at-once", "pixels", "workers")),
        *((f"--{name}=0", "from 0.001 to") for name in ("connect", "first-byte", "idle", "longest", "watch")),
        *((f"--{name}=nan", "from") for name in ("connect", "idle", "watch", "feedback-days", "implicit")),
        ("--idle=inf", "from 0.001 to"),
        ("--port=99999", "from 1 to 65535"),
        ("--port=0", "from 1 to 65535"),
        ("--samples=rows.jsonl", "needs `--watch`"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_before_anything_is_loaded(
    option: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        serve.main([str(tmp_path), option])
    assert option.partition("=")[0] in str(refused.value)
    assert "Serving" not in capsys.readouterr().out


def test_a_new_key_is_printed_with_the_line_that_lets_it_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["--new-key", "ann"]) == 0
    said = capsys.readouterr()
    key = said.err.splitlines()[0].split(": ", 1)[1]
    assert read_keys(said.out, "x") == [Key("ann", hashed(key))], "the line alone, for `>> keys.jsonl`"


def test_a_router_in_which_nobody_can_answer_says_so_as_it_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, specs in (("mute", {}), ("heard", {"law": {"endpoint": "http://127.0.0.1:9/v1"}})):
        tiny.router({domain: specs.get(domain, {}) for domain in tiny.DOMAINS}).save_pretrained(tmp_path / name)
        caplog.clear()
        assert make_application(Service(str(tmp_path / name), log=False)), "it serves routes all the same"
        assert ("ir3de experts ROUTER --set" in caplog.text) == (name == "mute")


def test_the_head_of_an_answer_goes_out_with_its_body_and_never_waits_for_it() -> None:
    sent: list[bytes] = []

    class Transport:
        """What is written, and in how many pieces."""

        def write(self, data: bytes) -> None:
            sent.append(data)

        def close(self) -> None:
            sent.append(b"closed")

        def is_closing(self) -> bool:
            return False

    async def answer() -> None:
        held: Any = guard._HeadWithBody(Transport(), asyncio.get_running_loop())  # type: ignore[arg-type]
        assert not held.is_closing(), "all else is the transport's own"
        held.write(b"HTTP/1.1 200 OK\r\n\r\n")
        held.write(b"body")
        held.write(b"more")
        held.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.sleep(0.01)
        held.write(b"late")
        held.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        held.close()

    asyncio.run(answer())
    ok = b"HTTP/1.1 200 OK\r\n\r\n"
    assert sent == [ok + b"body", b"more", ok, b"late", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"closed"]
