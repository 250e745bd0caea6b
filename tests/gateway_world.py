"""A gateway on the tiny world, running, with stand-in servers behind it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ir3de import IR3DERoutingPipeline
from ir3de.gateway.app import application
from ir3de.gateway.attempts import Patience
from ir3de.gateway.gateway import Gateway
from ir3de.gateway.generation import pieces
from ir3de.gateway.local import Generate
from ir3de.gateway.serving import served
from ir3de.gateway.settings import Settings
from ir3de.scripts.bench.stand_in import Received, Respond, StandIn, respond

from . import tiny
from .hub_server import running

LAW = [{"role": "user", "content": "the court and a judge"}]
CODE = [{"role": "user", "content": "debug my python loop"}]
HASTY = Settings(patience=Patience(retries=1, wait=0.01))


class Answered:
    """An answer as bytes."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.body)
        return read

    @property
    def expert(self) -> str | None:
        return self.headers.get("x-ir3de-expert")

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


class World:
    """A running gateway and the servers behind it, by the expert's name."""

    def __init__(self, gateway: Gateway, port: int, behind: dict[str, StandIn]) -> None:
        self.gateway = gateway
        self.port = port
        self.behind = behind
        self._own = threading.local()
        self.watch: Any = None
        self.url = f"http://127.0.0.1:{port}/v1"

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answered:
        """Sends bytes as they are, and anything else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = getattr(self._own, "connection", None)  # a thread's own, kept open
        if connection is None:
            connection = self._own.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, data, {"content-type": "application/json", **named})
            return Answered(connection.getresponse())
        except BaseException:
            connection.close()
            raise

    def ask(self, api: str = "chat/completions", headers: dict[str, str] | None = None, **fields: Any) -> Answered:
        """Asks about law, unless the fields say something else; those that are None are left out."""
        asked = {"model": "ir3de", "messages": LAW, **fields}
        kept = {key: value for key, value in asked.items() if value is not None}
        return self.send("POST", f"/v1/{api}", kept, **(headers or {}))

    def last(self, expert: str) -> Received:
        """What the server of an expert got last."""
        return self.behind[expert].received[-1]

    def wait(self, until: Any, what: str) -> None:
        """Waits until a condition holds."""
        end = time.monotonic() + 5
        while not until():
            assert time.monotonic() < end, what
            time.sleep(0.01)


@contextmanager
def world(
    specs: dict[str, dict[str, Any]] | None = None,
    settings: Settings = HASTY,
    responds: dict[str, Respond] | None = None,
    names: tuple[str, ...] = tuple(tiny.DOMAINS),
    generate: Generate = pieces,
    http: Any = "auto",
    keeping: Any = None,
    spending: Any = None,
    **config: Any,
) -> Iterator[World]:
    """A gateway whose experts `names` are behind stand-in servers."""
    with ExitStack() as stack:
        behind = {name: stack.enter_context(StandIn((responds or {}).get(name, respond))) for name in names}
        endpoints = {name: {"endpoint": server.url, "model": f"served-{name}"} for name, server in behind.items()}
        all_specs = {name: {**endpoints.get(name, {}), **(specs or {}).get(name, {})} for name in tiny.DOMAINS}
        router = IR3DERoutingPipeline(tiny.router(all_specs, **config), device="cpu")
        gateway = Gateway(served(router), settings, generate, keeping, spending)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2048))
        stack.enter_context(running(application(gateway), listener, http=http))
        yield World(gateway, listener.getsockname()[1], behind)


@contextmanager
def command(
    router: Path, *options: str, descriptors: int | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`ir3de serve` as a process of its own, and its address, with a limit on its descriptors or the usual one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    args = [sys.executable, "-m", "ir3de.scripts.serve", str(router), "--port", str(port), *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if descriptors is not None:
        args = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *args]
    said = router.parent / "stderr"
    with said.open("w") as stderr:
        process = subprocess.Popen(args, stderr=stderr, env=env, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{url}/ready").close()
                break
            except OSError:
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < end, said.read_text()
                time.sleep(0.1)
        yield process, url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
        process.wait()


def post(url: str, body: Any, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
