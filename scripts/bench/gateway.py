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
from collections.abc import Iterator
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

    Args:
        url (`str`): up to `/v1`.
        clients (`int`): at once.
        requests (`int`): of all clients together.
        stream (`bool`): ask for streams.
        model (`str`): that is asked for.
    """
    ms: list[float] = []
    first_ms: list[float] = []
    failed = 0
    left = iter(range(requests))

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal failed
        for number in left:
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
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return Load(clients, ms, first_ms, time.perf_counter() - began, failed)


@contextlib.contextmanager
def process(command: list[str], url: str, seconds: float = 120, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, from when it answers.

    Args:
        command (`list[str]`): that starts it.
        url (`str`): that it answers once it is there.
        seconds (`float`): to wait for that.
        env: further environment variables.
    """
    log = tempfile.TemporaryFile()  # noqa: SIM115
    running = subprocess.Popen(command, env={**os.environ, **env}, stdout=log, stderr=subprocess.STDOUT)
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


async def measure(name: str, url: str, requests: int, running: subprocess.Popen[bytes], most: int = 500) -> None:
    """One server under loads of one, sixteen, a hundred and five hundred clients, and streams.

    Args:
        name (`str`): of the server, for the table.
        url (`str`): up to `/v1`.
        requests (`int`): of each load.
        running (`Popen`): the server's process.
        most (`int`): clients at once.
    """
    await load(url, 16, 200)  # warm
    loads = [(1, requests // 4, False), *((clients, requests, False) for clients in (16, 100, 500) if clients <= most)]
    for clients, number, stream in (*loads, (1, requests // 4, True)):
        before = cpu_seconds(running)
        measured = await load(url, clients, number, stream)
        cpu = 1000 * (cpu_seconds(running) - before) / max(1, number)
        print(f"{measured.line(name + ', streams' * stream)} {cpu:.2f} |", flush=True)


async def many_streams(url: str, running: subprocess.Popen[bytes], numbers: tuple[int, ...]) -> None:
    """Streams that are open at the same time: how many are complete, and the gateway's memory."""
    for number in numbers:
        before, most = memory(running), 0
        complete = 0

        async def one(session: aiohttp.ClientSession) -> None:
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
    parser.add_argument("--requests", type=int, default=2000, help="of each load (default: 2000)")
    parser.add_argument("--former", metavar="DIR", help="checkout of a former version whose `ir3de serve` to measure")
    parser.add_argument("--litellm", metavar="PATH", help="the `litellm` command, in a virtual environment of its own")
    parser.add_argument("--streams", type=int, nargs="*", default=[100, 1000], help="that are open at the same time")
    args = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    port = free_port()
    straight = f"http://127.0.0.1:{port}/v1"
    serve = [sys.executable, "-m", "ir3de.scripts.bench.stand_in", str(port)]
    with tempfile.TemporaryDirectory() as folder, process(serve, f"{straight}/models") as stand_in:
        router = make_router(Path(folder), straight)
        print("| server | clients | a second | median ms | p99 ms | first byte ms | failed | processor ms a request |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|")
        asyncio.run(measure("straight", straight, args.requests, stand_in))
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        keys = Path(folder) / "keys.jsonl"
        keys.write_text(json.dumps({"name": "bench", "sha256": _sha256("sk-bench")}) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "ir3de.scripts.serve", str(router), "--port", str(port), "--keys", str(keys)]
        with process(command, f"{url}/ready") as running:
            asyncio.run(measure("gateway", f"{url}/v1", args.requests, running))
            asyncio.run(many_streams(f"{url}/v1", running, tuple(args.streams)))
            _routing_share(url)
        if args.former:
            _former(args.former, router, args.requests)
        if args.litellm:
            _litellm(args.litellm, straight, Path(folder), args.requests)
    return 0


def _routing_share(url: str) -> None:
    """What part of the added time is spent on choosing an expert, as the gateway's own metrics have it."""
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    values = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name.startswith("ir3de_") and name.endswith("_seconds_sum"):
            values[name] = float(value)
    route, added = values["ir3de_route_seconds_sum"], values["ir3de_added_seconds_sum"]
    print(f"Routing took {100 * route / added:.0f} % of the time that the gateway itself counts as added.")


def _former(folder: str, router: Path, requests: int) -> None:
    port = free_port()
    start = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ir3de.scripts.serve import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", start, folder, str(router), "--port", str(port)]
    url = f"http://127.0.0.1:{port}/v1"
    with process(command, f"{url}/models") as running:
        asyncio.run(measure("former endpoint", url, requests // 4, running, most=100))


def _litellm(command: str, straight: str, folder: Path, requests: int) -> None:
    port = free_port()
    config = folder / "litellm.yaml"
    lines = ["model_list:", "  - model_name: ir3de", "    litellm_params:", "      model: openai/served"]
    lines += [f"      api_base: {straight}", "      api_key: none"]
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    started = [command, "--config", str(config), "--port", str(port), "--num_workers", "1"]
    url = f"http://127.0.0.1:{port}"
    with process(started, f"{url}/health/liveliness", LITELLM_LOG="ERROR") as running:
        asyncio.run(measure("LiteLLM", f"{url}/v1", requests // 4, running, most=100))


def _sha256(key: str) -> str:
    import hashlib

    return hashlib.sha256(key.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
