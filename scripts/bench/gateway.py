"""What the gateway costs: time added to a request, requests a second, first bytes of streams, beside others."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

_ROUTES = 100  # prompts that are told apart by their number
_KEY = {"authorization": "Bearer sk-bench"}
_ASKED: dict[str, Any] = {"model": "ir3de", "temperature": 0.5, "tools": [], "x_unknown": {"nested": [1, 2.5, None]}}


class Load(NamedTuple):
    """
    What came of a load.

    Args:
        clients (`int`): at once.
        ms (`list[float]`): that each request took, in milliseconds.
        first_ms (`list[float]`): until the first byte of its body.
        seconds (`float`): that all took together.
        failed (`int`): requests without an answer of status 200.
    """

    clients: int
    ms: list[float]
    first_ms: list[float]
    seconds: float
    failed: int

    @property
    def rate(self) -> float:
        """Answers of status 200 a second."""
        return len(self.ms) / self.seconds

    def line(self, name: str) -> str:
        """As a row of a table."""
        if not self.ms:
            return f"| {name} | {self.clients} | | | | | {self.failed} |"
        p99 = sorted(self.ms)[int(0.99 * (len(self.ms) - 1))]
        median, first = statistics.median(self.ms), statistics.median(self.first_ms)
        return f"| {name} | {self.clients} | {self.rate:.0f} | {median:.2f} | {p99:.2f} | {first:.2f} | {self.failed} |"


async def load(url: str, clients: int, requests: int, stream: bool = False, model: str = "ir3de") -> Load:
    """Sends requests from so many clients at once, each one after the other.

    The clock begins once every client has had a first answer: how fast connections are opened is another question.

    Args:
        url (`str`): up to `/v1`.
        clients (`int`): at once.
        requests (`int`): of all clients together, but for the first of each.
        stream (`bool`): ask for streams.
        model (`str`): that is asked for.
    """
    ms: list[float] = []
    first_ms: list[float] = []
    failed = 0
    left = iter(range(requests))

    async def client(session: aiohttp.ClientSession) -> None:
        """Asks while requests are left."""
        for number in left:
            await ask(session, number)

    async def ask(session: aiohttp.ClientSession, number: int) -> None:
        """One request, timed."""
        nonlocal failed
        said = f"Find the roots of x^2 - {number % _ROUTES}x + 6, and say how many there are."
        body = {**_ASKED, "model": model, "messages": [{"role": "user", "content": said}], "stream": stream}
        began = time.perf_counter()
        try:
            async with session.post(f"{url}/chat/completions", json=body) as response:
                await response.content.readany()
                first = time.perf_counter()
                await response.read()
                good = response.status == 200
        except (aiohttp.ClientError, OSError):
            good = False
        if good:
            ms.append(1000 * (time.perf_counter() - began))
            first_ms.append(1000 * (first - began))
        else:
            failed += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=_KEY) as session:
        await asyncio.gather(*(ask(session, 0) for _ in range(clients)))  # opens a connection for each
        ms.clear()
        first_ms.clear()
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return Load(clients, ms, first_ms, time.perf_counter() - began, failed)


@contextlib.contextmanager
def process(
    command: list[str], url: str, seconds: float = 120, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, from when it answers.

    Args:
        command (`list[str]`): that starts it.
        url (`str`): that it answers once it is there.
        seconds (`float`): to wait for that.
        env (`Mapping[str, str]`, *optional*): further environment variables.
    """
    log = tempfile.TemporaryFile()  # noqa: SIM115
    running = subprocess.Popen(command, env={**os.environ, **(env or {})}, stdout=log, stderr=subprocess.STDOUT)
    end = time.monotonic() + seconds
    try:
        while True:
            try:
                urllib.request.urlopen(url, timeout=2).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                if running.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start: {log.read()[-2000:].decode()}") from None
                time.sleep(0.1)
        yield running
    finally:
        running.terminate()
        try:
            running.wait(timeout=10)
        except subprocess.TimeoutExpired:
            running.kill()


def cpu_seconds(running: subprocess.Popen[bytes]) -> float:
    """Processor time that a process has taken, which other processes disturb less than they do the clock."""
    fields = Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(running: subprocess.Popen[bytes]) -> int:
    """Bytes of a process in memory."""
    pages = int(Path(f"/proc/{running.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def make_router(folder: Path, endpoint: str) -> Path:
    """The embedded router with all its experts behind one server."""
    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.scripts.fitting.embedded import build

    model = IR3DEModel.from_pretrained(build(str(folder / "embedded")))
    names = model.config.expert_names
    model.config.set_experts([{"name": name, "endpoint": endpoint, "model": f"served-{name}"} for name in names])
    model.save_pretrained(folder / "router")
    return folder / "router"


class Server(NamedTuple):
    """
    A server that is measured.

    Args:
        name (`str`): for the table.
        url (`str`): up to `/v1`.
        running (`Popen`): its process.
        most (`int`): clients that it is measured with at once.
    """

    name: str
    url: str
    running: subprocess.Popen[bytes]
    most: int = 500


def measure(servers: list[Server], clients: int, requests: int, rounds: int, stream: bool) -> dict[str, Load]:
    """The same load on all servers in turn, again and again, so that whatever else the machine does meets them alike.

    Args:
        servers (`list[Server]`): that run.
        clients (`int`): at once.
        requests (`int`): a server and round.
        rounds (`int`): of which each server's middle rate is taken.
        stream (`bool`): ask for streams.
    """
    taken: dict[str, list[Load]] = {server.name: [] for server in servers}
    cpu = dict.fromkeys(taken, 0.0)
    for _ in range(rounds):
        for server in servers:
            before = cpu_seconds(server.running)
            taken[server.name].append(asyncio.run(load(server.url, clients, requests, stream)))
            cpu[server.name] += cpu_seconds(server.running) - before
    result = {}
    for name, loads in taken.items():
        rate = statistics.median(each.rate for each in loads)
        ms = list(chain.from_iterable(each.ms for each in loads))
        first = list(chain.from_iterable(each.first_ms for each in loads))
        whole = Load(clients, ms, first, len(ms) / rate if rate else 1.0, sum(each.failed for each in loads))
        result[name] = whole
        label = f"{name}, streams" if stream else name
        print(f"{whole.line(label)} {1000 * cpu[name] / (rounds * (requests + clients)):.2f} |", flush=True)
    return result


async def many_streams(url: str, running: subprocess.Popen[bytes], numbers: tuple[int, ...]) -> None:
    """Streams that are open at the same time: how many are complete, and the gateway's memory."""
    for number in numbers:
        before, most = memory(running), 0
        complete = 0

        async def one(session: aiohttp.ClientSession) -> None:
            """Reads one stream to its end."""
            nonlocal complete
            body = {"model": "ir3de", "messages": [{"role": "user", "content": "slowly: x + 1"}], "stream": True}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                body_read = await response.read()
                complete += body_read.endswith(b"data: [DONE]\n\n")

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=_KEY) as session:
            tasks = [asyncio.ensure_future(one(session)) for _ in range(number)]
            while not all(task.done() for task in tasks):
                most = max(most, memory(running))
                await asyncio.sleep(0.1)
            await asyncio.gather(*tasks)
        print(
            f"{number} streams at once: {complete} complete; {before / 1e6:.0f} MB before, {most / 1e6:.0f} MB at most"
        )


def main() -> int:
    """Measures the gateway beside the same load sent straight to the server, and beside others that are named."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--requests", type=int, default=400, help="of a load in a round (default: 400)")
    parser.add_argument("--rounds", type=int, default=5, help="of each load (default: 5); 0 for the streams alone")
    parser.add_argument("--former", metavar="DIR", help="the source of a former version, to measure its server")
    parser.add_argument("--litellm", metavar="PATH", help="the `litellm` command, in a virtual environment of its own")
    parser.add_argument("--streams", type=int, nargs="*", default=[100, 1000], help="that are open at the same time")
    args = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        straight, router = _stand_in(stack, folder)
        servers = [straight, _gateway(stack, folder, router), _floor(stack, straight.url)]
        if args.former:
            servers.append(_former(stack, Path(args.former), folder, router))
        if args.litellm:
            servers.append(_litellm(stack, args.litellm, straight.url, folder))
        if args.rounds:
            _compare(servers, args.requests, args.rounds)
        gateway = servers[1]
        asyncio.run(many_streams(gateway.url, gateway.running, tuple(args.streams)))
    return 0


def _compare(servers: list[Server], requests: int, rounds: int) -> None:
    """The table of all loads, and what the gateway adds."""
    for server in servers:
        asyncio.run(load(server.url, 16, 100))  # warm
    print("| server | clients | a second | median ms | p99 ms | first byte ms | failed | processor ms a request |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    before = _routing(servers[1].url)
    alone = measure(servers, 1, requests // 2, rounds, False)
    after = _routing(servers[1].url)
    for clients in (16, 100, 500):
        several = max(requests, 4 * clients)
        measure([server for server in servers if clients <= server.most], clients, several, rounds, False)
    streams = measure(servers, 1, requests // 4, rounds, True)
    straight, gateway = (alone[server.name] for server in servers[:2])
    added = statistics.median(gateway.ms) - statistics.median(straight.ms)
    route = 1000 * (after[0] - before[0]) / (after[1] - before[1])
    print(f"Added to one client: {added:.2f} ms in the median, of which {route:.2f} ms to choose an expert.")
    p99 = [sorted(each.ms)[int(0.99 * (len(each.ms) - 1))] for each in (straight, gateway)]
    first = [statistics.median(streams[server.name].first_ms) for server in servers[:2]]
    print(f"Added at p99: {p99[1] - p99[0]:.2f} ms; to the first byte of a stream: {first[1] - first[0]:.2f} ms.")


def _routing(url: str) -> tuple[float, float]:
    """Seconds that the gateway has spent on choosing experts, and how often it has."""
    text = urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics").read().decode()
    values = dict(line.split(" ") for line in text.splitlines() if line.startswith("ir3de_route_seconds_"))
    return float(values["ir3de_route_seconds_sum"]), float(values["ir3de_route_seconds_count"])


def _stand_in(stack: contextlib.ExitStack, folder: Path) -> tuple[Server, Path]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    command = [sys.executable, "-m", "ir3de.scripts.bench.stand_in", str(port)]
    running = stack.enter_context(process(command, f"{url}/models"))
    return Server("straight", url, running), make_router(folder, url)


def _gateway(stack: contextlib.ExitStack, folder: Path, router: Path) -> Server:
    """The gateway with everything on: keys, metrics, a log line a request."""
    keys = folder / "keys.jsonl"
    keys.write_text(json.dumps({"name": "bench", "sha256": _sha256("sk-bench")}) + "\n", encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-m", "ir3de.scripts.serve", str(router), "--port", str(port), "--keys", str(keys)]
    running = stack.enter_context(process(command, f"http://127.0.0.1:{port}/ready"))
    return Server("gateway", f"http://127.0.0.1:{port}/v1", running)


def _floor(stack: contextlib.ExitStack, straight: str) -> Server:
    """What any forwarder on the same libraries costs."""
    port = free_port()
    command = [sys.executable, "-m", "ir3de.scripts.bench.floor", straight, str(port)]
    running = stack.enter_context(process(command, f"http://127.0.0.1:{port}/"))
    return Server("bare forwarder", f"http://127.0.0.1:{port}/v1", running)


def _former(stack: contextlib.ExitStack, source: Path, folder: Path, router: Path) -> Server:
    """The server of a former version, whose source is the package `ir3de`, whatever its folder is called."""
    named = folder / "former"
    named.mkdir()
    (named / "ir3de").symlink_to(source.resolve(), target_is_directory=True)
    port = free_port()
    start = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ir3de.scripts.serve import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", start, str(named), str(router), "--port", str(port)]
    url = f"http://127.0.0.1:{port}/v1"
    return Server("former endpoint", url, stack.enter_context(process(command, f"{url}/models")), most=100)


def _litellm(stack: contextlib.ExitStack, command: str, straight: str, folder: Path) -> Server:
    port = free_port()
    config = folder / "litellm.yaml"
    lines = ["model_list:", "  - model_name: ir3de", "    litellm_params:", "      model: openai/served"]
    lines += [f"      api_base: {straight}", "      api_key: none"]
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    started = [command, "--config", str(config), "--port", str(port), "--num_workers", "1"]
    env = {"LITELLM_LOG": "ERROR", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    running = process(started, f"http://127.0.0.1:{port}/health/liveliness", env=env)
    return Server("LiteLLM", f"http://127.0.0.1:{port}/v1", stack.enter_context(running), most=100)


def _sha256(key: str) -> str:
    import hashlib

    return hashlib.sha256(key.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
