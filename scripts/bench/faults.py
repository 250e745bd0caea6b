"""`python scripts/bench/faults.py`: requests against servers that fail in every way, and routers swapped under load.

Each request carries a word of its own, and the server that answers it says that word again. So an answer that is lost,
doubled, or another request's is seen.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from ir3de.scripts.bench.experts import QUESTIONS, tiny_router
from ir3de.scripts.bench.gateway import free_port, process
from ir3de.scripts.bench.stand_in import Received, StandIn

_DOCUMENTED = {"busy", "expert_failed", "expert_unavailable"}
_IN_THE_MIDDLE = "in the middle of its answer"
_FAULTS = ("stall", "429", "500", "broken chunk", "slow headers", "hang up")
_QUICK = ("--connect", "1", "--first-byte", "1.5", "--idle", "1")


def _events(asked: dict[str, Any], word: str) -> list[bytes]:
    about = {"id": f"chatcmpl-{word}", "object": "chat.completion.chunk", "created": 1, "model": asked["model"]}
    deltas: list[Any] = [
        {"role": "assistant", "content": ""},
        *({"content": part} for part in ("It ", "is ", word, ".")),
    ]
    choices = [*({"index": 0, "delta": delta, "finish_reason": None} for delta in deltas)]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    made = [b"data: " + json.dumps({**about, "choices": [choice]}).encode() + b"\n\n" for choice in choices]
    return [*made, b"data: [DONE]\n\n"]


async def echo(request: web.Request, received: Received, pause: float = 0.0) -> web.StreamResponse:
    """Answers with the word that a request carries, and pauses so many seconds after each event."""
    asked = received.json
    word = asked["messages"][-1]["content"].split()[-1]
    if not asked.get("stream"):
        message = {"role": "assistant", "content": f"It is {word}."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({"id": f"chatcmpl-{word}", "model": asked["model"], "choices": [choice]})
    stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await stream.prepare(request)
    for event in _events(asked, word):
        await stream.write(event)
        await asyncio.sleep(pause)
    return stream


class Faulty:
    """
    Answers well, or fails in one of the ways; how often which is counted.

    Args:
        share (`float`): of the requests that fail.
        seed (`int`): of the draw.
    """

    def __init__(self, share: float, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._share = share
        self._draw = random.Random(seed)

    async def __call__(self, request: web.Request, received: Received) -> web.StreamResponse:
        """Answers one request, or fails."""
        kind = self._draw.choice(_FAULTS) if self._draw.random() < self._share else "good"
        self.done[kind] += 1
        transport = request.transport
        assert transport is not None
        if kind == "good":
            return await echo(request, received)
        if kind in ("429", "500"):
            return web.Response(status=int(kind), text="the server's own words")
        if kind == "slow headers":
            transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            while not transport.is_closing():
                transport.write(b"x-more: 1\r\n")
                await asyncio.sleep(0.2)
        elif kind != "hang up":
            await self._break_off(request, received, kind)
        transport.abort()
        return web.Response()

    async def _break_off(self, request: web.Request, received: Received, kind: str) -> None:
        """Sends three events, and then nothing more, or what is no chunk."""
        assert request.transport is not None
        asked = received.json
        head = "text/event-stream" if asked.get("stream") else "application/json"
        stream = web.StreamResponse(headers={"content-type": head})
        await stream.prepare(request)
        for event in _events(asked, asked["messages"][-1]["content"].split()[-1])[:3]:
            await stream.write(event)
        if kind == "broken chunk":
            request.transport.write(b"zz\r\nno chunk\r\n")
            await asyncio.sleep(0.05)
        else:
            await asyncio.sleep(30)


def make_router(folder: Path, endpoints: list[str], prefix: str) -> Path:
    """The embedded router with its experts behind servers in turn; their models' names begin with `prefix`."""
    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.scripts.fitting.embedded import build

    model = IR3DEModel.from_pretrained(build(str(folder / "embedded")))
    names = model.config.expert_names
    specs = [
        {"name": name, "endpoint": endpoints[index % len(endpoints)], "model": f"{prefix}{name}"}
        for index, name in enumerate(names)
    ]
    model.config.set_experts(specs)
    model.save_pretrained(folder / f"router-{prefix}")
    return folder / f"router-{prefix}"


class Told(NamedTuple):
    """
    What a client was told.

    Args:
        outcome (`str`): in words; one that begins with `WRONG` should not be.
        expert (`str`): who answered.
        seconds (`float`): that it took.
    """

    outcome: str
    expert: str
    seconds: float


async def ask(
    session: aiohttp.ClientSession, url: str, number: int, questions: Sequence[str], prefixes: tuple[str, ...]
) -> Told:
    """Asks one of some questions, every second time for a stream, and judges the answer."""
    word = f"word-{number:06d}-"
    stream = number % 2 == 0
    content = f"{questions[number // 2 % len(questions)].format(number % 7)} {word}"
    body = {"model": "ir3de", "messages": [{"role": "user", "content": content}], "stream": stream}
    began, expert = time.perf_counter(), ""
    try:
        async with session.post(f"{url}/chat/completions", json=body) as response:
            expert = response.headers.get("x-ir3de-expert", "")
            text = (await response.read()).decode()
            outcome = _judged(response, text, word, stream, prefixes)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        outcome = f"WRONG: lost ({type(error).__name__})"
    return Told(outcome, expert, time.perf_counter() - began)


def _judged(response: aiohttp.ClientResponse, text: str, word: str, stream: bool, prefixes: tuple[str, ...]) -> str:
    if response.status != 200:
        code = json.loads(text)["error"]["code"]
        return f"{response.status} {code}" if code in _DOCUMENTED else f"WRONG: {response.status} {code}"
    if text.count("word-") != text.count(word):
        return "WRONG: another request's answer"
    broke = stream and _IN_THE_MIDDLE in text
    expert = response.headers["x-ir3de-expert"]
    if not any(f'"model": "{prefix}{expert}"' in text for prefix in prefixes):
        return "WRONG: another model than the one that is named"
    said = text.count(f'"content": "{word}"' if stream else f"It is {word}.")
    if broke:
        return "an error event ends the stream" if said <= 1 else "WRONG: said twice"
    complete = text.endswith("data: [DONE]\n\n") if stream else True
    return "answered" if said == 1 and complete else "WRONG: not whole, and no error"


async def load(
    url: str, clients: int, numbers: Iterator[int], questions: Sequence[str], prefixes: tuple[str, ...]
) -> list[Told]:
    """What so many clients are told, each asking one thing after the other."""
    told: list[Told] = []

    async def client(session: aiohttp.ClientSession) -> None:
        """Asks while there is something to ask."""
        for number in numbers:
            told.append(await ask(session, url, number, questions, prefixes))

    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return told


def report(what: str, told: list[Told], asked: int) -> int:
    """Prints what clients were told; 1 if anything was that should not be."""
    outcomes = Counter(each.outcome for each in told)
    seconds = sorted(each.seconds for each in told)
    print(f"{what}: {len(told)} of {asked} requests were answered: {dict(outcomes)}")
    print(f"answers by expert: {dict(Counter(each.expert for each in told if each.expert))}")
    print(f"seconds: median {seconds[len(seconds) // 2]:.3f}, longest {seconds[-1]:.1f}", flush=True)
    return int(len(told) != asked or any(outcome.startswith("WRONG") for outcome in outcomes))


def faults(requests: int, clients: int, share: float) -> int:
    """Three servers that fail in every way, and a fourth that is killed again and again."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kinds = [Faulty(share, seed) for seed in range(3)]
        servers = [stack.enter_context(StandIn(kind, keep=False)) for kind in kinds]
        killed = free_port()
        endpoints = [f"http://127.0.0.1:{killed}/v1", *(server.url for server in servers)]
        router = make_router(folder, endpoints, "served-")
        stop = threading.Event()
        kills: list[float] = []
        killing = threading.Thread(target=_kill_again_and_again, args=(killed, stop, kills))
        url = stack.enter_context(_gateway(router, *_QUICK))
        killing.start()
        try:
            told = asyncio.run(load(url, clients, iter(range(requests)), QUESTIONS, ("served-",)))
        finally:
            stop.set()
            killing.join()
    done: Counter[str] = sum((kind.done for kind in kinds), Counter())
    print(f"the servers' part: {dict(done)}; the fourth was killed {len(kills)} times")
    return report("faults", told, requests)


def _kill_again_and_again(port: int, stop: threading.Event, kills: list[float]) -> None:
    """A server that lives for a second or two, and is killed while it answers; notes when."""
    draw = random.Random(0)
    context = multiprocessing.get_context("forkserver")  # whose processes begin at once
    context.set_forkserver_preload(["ir3de.scripts.bench.faults"])
    while not stop.is_set():
        running = context.Process(target=_echo_on, args=(port,), daemon=True)
        running.start()
        stop.wait(draw.uniform(1, 3))
        running.kill()
        running.join()
        kills.append(time.monotonic())
        stop.wait(draw.uniform(0.1, 1))


def _echo_on(port: int) -> None:
    server = StandIn(echo, keep=False)
    server.port = port
    with server:
        threading.Event().wait()


@contextlib.contextmanager
def _gateway(router: Path, *options: str) -> Iterator[str]:
    """`ir3de serve` in a process of its own; its address."""
    port = free_port()
    command = [sys.executable, "-m", "ir3de.scripts.serve", str(router), "--port", str(port), "--no-log", *options]
    with process(command, f"http://127.0.0.1:{port}/ready"):
        yield f"http://127.0.0.1:{port}/v1"


def swaps(number: int, seconds: float, clients: int) -> int:
    """New revisions while clients ask; an even one has other servers and models than an odd one."""
    wrong: list[str] = []

    def server_of(prefix: str) -> StandIn:
        """A server that is to be asked for models of this prefix alone."""

        async def answer(request: web.Request, received: Received) -> web.StreamResponse:
            """Notes a model of another server, and answers."""
            if not received.json["model"].startswith(prefix):
                wrong.append(received.json["model"])
            return await echo(request, received, pause=0.05)  # so that many a stream is older than its router

        return StandIn(answer, keep=False)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prefixes = ("even-", "odd-")
        servers = [stack.enter_context(server_of(prefix)) for prefix in prefixes]
        configs = []
        for prefix, server in zip(prefixes, servers, strict=True):
            names = [f"expert-{index}" for index in range(5)]
            made, texts = tiny_router([{"name": n, "endpoint": server.url, "model": f"{prefix}{n}"} for n in names])
            made.save_pretrained(folder / prefix)
            configs.append((folder / prefix / "config.json").read_bytes())
        questions = list(islice(texts, 50))
        router = folder / prefixes[0]
        url = stack.enter_context(_gateway(router, "--watch", "0.1"))
        end = time.monotonic() + seconds
        asked = 0

        def numbers() -> Iterator[int]:
            """Of requests, until the time is over."""
            nonlocal asked
            while time.monotonic() < end:
                asked += 1
                yield 2 * asked  # streams

        publishing = threading.Thread(target=_publish, args=(router / "config.json", configs, number, seconds))
        publishing.start()
        told = asyncio.run(load(url, clients, numbers(), questions, prefixes))
        publishing.join()
        figures = urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics").read().decode()
    taken = [line for line in figures.splitlines() if line.startswith("ir3de_router_swaps_total")]
    print(f"{number} revisions in {seconds:g} s: {taken}")
    for model in sorted(set(wrong)):
        print(f"WRONG: the server of another revision was asked for {model}")
    return report(f"{clients} clients that stream", told, asked) or int(bool(wrong))


def _publish(config: Path, configs: list[bytes], number: int, seconds: float) -> None:
    """Puts one revision after the other into the place of the router that is watched."""
    began = time.monotonic()
    for index in range(1, number + 1):
        beside = config.with_name("config.json.new")
        beside.write_bytes(configs[index % len(configs)])
        os.replace(beside, config)
        time.sleep(max(0.0, began + index * seconds / number - time.monotonic()))


def main() -> int:
    """Prints what became of the requests; 1 if one was lost, doubled or mixed up, or failed in a way not documented."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000, help="against servers that fail (default: 2000)")
    parser.add_argument("--clients", type=int, default=16, help="at once (default: 16)")
    parser.add_argument("--share", type=float, default=0.5, help="of a server's answers that fail (default: 0.5)")
    parser.add_argument("--swaps", type=int, default=0, metavar="N", help="instead: new revisions while clients stream")
    parser.add_argument("--seconds", type=float, default=60, help="that the swaps take (default: 60)")
    args = parser.parse_args()
    if args.swaps:
        return swaps(args.swaps, args.seconds, args.clients)
    return faults(args.requests, args.clients, args.share)


if __name__ == "__main__":
    sys.exit(main())
