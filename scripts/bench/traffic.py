"""What a store costs: scores that are taken, a ledger that is remade from many of them, and what a server pays."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.outcomes_ir3de import shared
from ir3de.scripts.bench.gateway import cpu_seconds, free_port, make_router, process
from ir3de.traffic.remade import remade
from ir3de.traffic.store import Answer, Given, Store
from ir3de.traffic.writer import Writer

_AT_ONCE = 20_000  # rows that are written in one transaction
_DAY = 86_400.0


class Timed:
    """The time of a block of code: of the clock, and of the processor, all threads of this process together."""

    def __enter__(self) -> Timed:
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        wall, cpu = self._began
        self.wall, self.cpu = time.perf_counter() - wall, time.process_time() - cpu

    def line(self, what: str, number: int) -> str:
        """As a row of a table, for so many of something."""
        each = 1000 * self.cpu / number
        return f"| {what} | {number:,} | {self.cpu:.2f} | {self.wall:.2f} | {each:.3f} |"


def named(what: str, number: int) -> list[str]:
    """So many names of something."""
    return [f"{what} {index}" for index in range(number)]


def fill(store: Store, rows: int, domains: list[str], experts: list[str], days: int) -> None:
    """Writes answers, each with a score, of these experts over so many days."""
    draw = np.random.default_rng(0)
    began = time.time() - days * _DAY
    for start in range(0, rows, _AT_ONCE):
        number = min(_AT_ONCE, rows - start)
        weights = shared(draw.dirichlet(np.full(len(domains), 0.1), number)).tolist()
        kept = [_answer(start + place, domains, row, experts, began, days) for place, row in enumerate(weights)]
        with store.writing() as connection:
            store.add_answers(connection, kept)
            for answer, score in zip(kept, draw.random(number).tolist(), strict=True):
                store.score(connection, Given(answer.request_id, score))


def _answer(number: int, domains: list[str], weights: list[int], experts: list[str], began: float, days: int) -> Answer:
    """One of many answers, evenly spread over the days."""
    name = f"{number:032x}"
    at = began + (number * 7919 % 100_003) / 100_003 * days * _DAY
    recognised = dict(zip(domains, weights, strict=True))
    expert = experts[number % len(experts)]
    return Answer(name, name, None, at, "", expert, "answered", recognised, 300, 0.002, 1.5)


def measured(rows: int, domains: int, experts: int, days: int) -> list[str]:
    """The table's rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store.sqlite")
        store = Store(str(path), days=10 * days)
        with Timed() as filling:
            fill(store, rows, named("domain", domains), named("expert", experts), days)
        with Timed() as remaking:
            made = remade(store)
        assert made.outcomes == rows
        lines = [filling.line("rows written", rows), remaking.line("rows remade into a ledger", rows)]
        writer = Writer(store)
        for what, at_once in (("scores, one after the other", 1), ("scores, 64 at a time", 64)):
            with Timed() as scoring:
                number = _score(writer, min(rows, 4096), at_once)
            lines.append(scoring.line(what, number))
        writer.close()
        store.close()
        size = path.stat().st_size
    parts = sum(len(of_expert) for of_expert in made.ledger.contributions.values())
    return [*lines, "", f"{size / rows:.0f} bytes a row in the store; {parts:,} contributions in the ledger."]


def _score(writer: Writer, number: int, at_once: int) -> int:
    """Scores answers anew, each waited for until it is committed, so many at the same time."""

    def work(index: int) -> Callable[[Any], Any]:
        """What scores an answer."""
        given = Given(f"{index:032x}", 0.5, key=f"{at_once} {index}")
        return lambda connection: writer.store.score(connection, given)

    for start in range(0, number, at_once):
        brought = [writer.do(work(index)) for index in range(start, min(start + at_once, number))]
        for done in brought:
            done.result()
    return number


def served(requests: int) -> list[str]:
    """What a running gateway pays for a score, beside a request that does nothing."""
    with tempfile.TemporaryDirectory() as folder:
        place, port = str(Path(folder, "store.sqlite")), free_port()
        store = Store(place)
        fill(store, requests, named("domain", 10), named("expert", 10), days=1)
        store.close()
        router = make_router(Path(folder), "http://127.0.0.1:9/v1")
        command = [sys.executable, "-m", "ir3de.scripts.serve", str(router), "--port", str(port), "--store", place]
        url = f"http://127.0.0.1:{port}"
        with process([*command, "--no-log"], f"{url}/ready") as running:
            given = [json.dumps({"id": f"{number:032x}", "score": 0.5}).encode() for number in range(requests)]
            lines = []
            for what, method, path, bodies in (
                ("GET /health", "GET", "/health", [None] * requests),
                ("POST /v1/feedback", "POST", "/v1/feedback", given),
            ):
                before = cpu_seconds(running)
                milliseconds = asyncio.run(_sent(method, f"{url}{path}", bodies))
                cpu = 1000 * (cpu_seconds(running) - before) / requests
                lines.append(f"| {what} | {requests:,} | {cpu:.3f} | {statistics.median(milliseconds):.2f} |")
    return lines


def exchanging(rows: int, seconds: float) -> list[str]:
    """What requests wait where the server takes rounds of exchange, a second apart, beside one that takes none.

    The repository cannot be reached: all else of a round is done, the store counted and the router taught.
    """
    with tempfile.TemporaryDirectory() as folder:
        expert = free_port()
        router = make_router(Path(folder), f"http://127.0.0.1:{expert}/v1")
        config = IR3DEConfig.from_pretrained(router)
        place = str(Path(folder, "store.sqlite"))
        store = Store(place)
        fill(store, rows, config.domain_names, config.expert_names, days=20)
        store.close()
        stand_in = [sys.executable, "-m", "ir3de.scripts.bench.stand_in", str(expert)]
        lines = []
        with process(stand_in, f"http://127.0.0.1:{expert}/v1/models"):
            for what, options in (("no exchange", []), ("a round a second", ["--exchange", "a/b", "--every", "1s"])):
                port = free_port()
                command = [sys.executable, "-m", "ir3de.scripts.serve", str(router), "--port", str(port), "--no-log"]
                url = f"http://127.0.0.1:{port}"
                away = {"HF_ENDPOINT": "http://127.0.0.1:9", "IR3DE_STORE": place}
                with process([*command, *options], f"{url}/ready", env=away):
                    taken = asyncio.run(_asked(url, seconds))
                    rounds = urllib.request.urlopen(f"{url}/metrics").read().decode()
                found = re.search(r'ir3de_exchange_rounds_total\{outcome="refused"\} (\d+)', rounds)
                number = int(found[1]) if found else 0
                ms = np.array(taken)
                figures = [f"{each:.2f}" for each in (*np.percentile(ms, [50, 95, 99]), ms.max())]
                lines.append(f"| {what} | {number} | {len(ms):,} | {' | '.join(figures)} |")
    return lines


async def _asked(url: str, seconds: float) -> list[float]:
    """Asks again and again for so long, one request after the other with a pause, and scores an answer a second.

    Returns:
        `list[float]`: milliseconds that each request took.
    """
    taken: list[float] = []
    end = time.perf_counter() + seconds
    async with aiohttp.ClientSession() as session:

        async def score() -> None:
            """So that each round has something to teach."""
            for number in itertools.count():
                body = {"id": f"{number:032x}", "score": 1}
                async with session.post(f"{url}/v1/feedback", json=body) as response:
                    assert response.status == 200, await response.text()
                await asyncio.sleep(1)

        scores = asyncio.create_task(score())
        while time.perf_counter() < end:
            said = f"Find the roots of x^2 - {len(taken)}x + 6."
            body = {"model": "ir3de", "messages": [{"role": "user", "content": said}]}
            began = time.perf_counter()
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                await response.read()
                assert response.status == 200, await response.text()
            taken.append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(0.005)
        scores.cancel()
    return taken


async def _sent(method: str, url: str, bodies: Sequence[bytes | None], clients: int = 16) -> list[float]:
    """Sends requests from so many clients at once; the milliseconds that each took."""
    taken: list[float] = []
    left = iter(bodies)

    async def client(session: aiohttp.ClientSession) -> None:
        """Sends what is left, and times each."""
        for body in left:
            began = time.perf_counter()
            async with session.request(method, url, data=body) as response:
                await response.read()
                assert response.status == 200, await response.text()
            taken.append(1000 * (time.perf_counter() - began))

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return taken


def main(arguments: list[str] | None = None) -> int:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="answers with a score (default: 1000000)")
    parser.add_argument("--domains", type=int, default=10)
    parser.add_argument("--experts", type=int, default=10)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--requests", type=int, default=4000, help="that a running gateway gets (default: 4000)")
    parser.add_argument("--exchange-rows", type=int, default=100_000, help="in a store that is exchanged (100000)")
    parser.add_argument("--seconds", type=float, default=30, help="that requests are sent for beside rounds (30)")
    args = parser.parse_args(arguments)
    if args.exchange_rows:
        print("| rounds of exchange beside | rounds | requests | median, ms | 95 % | 99 % | most |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        print("\n".join(exchanging(args.exchange_rows, args.seconds)) + "\n")
    if not args.rows:
        return 0
    print("| what | number | processor, s | clock, s | processor, ms each |\n|---|---:|---:|---:|---:|")
    print("\n".join(measured(args.rows, args.domains, args.experts, args.days)))
    print(
        "\n| request, 16 at a time | number | processor of the server, ms | clock, ms (median) |\n|---|---:|---:|---:|"
    )
    print("\n".join(served(args.requests)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
