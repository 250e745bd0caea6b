"""`python scripts/bench/soak.py`: many clients at once against the endpoint: errors, mixed-up answers, memory."""

from __future__ import annotations

import argparse
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import psutil

from ir3de.scripts.bench.experts import QUESTIONS
from ir3de.scripts.bench.gateway import make_router
from ir3de.scripts.bench.stand_in import StandIn

_TOKENS = 8
_EACH = 4  # prompts of each question
_MAX_GROWTH = 0.05


def main() -> int:
    """Prints what happened; 1 if anything did that should not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--router", help="folder or Hub id; default: the embedded router")
    parser.add_argument("--behind", action="store_true", help="the embedded router with experts behind a server")
    parser.add_argument("--waiting", type=int, help="requests that may wait, as in `ir3de serve`")
    args = parser.parse_args()
    options = [] if args.waiting is None else ["--waiting", str(args.waiting)]
    with ExitStack() as stack:
        router = args.router
        if args.behind:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            router = str(make_router(folder, stack.enter_context(StandIn(keep=False)).url))
        url, process = stack.enter_context(serving([router] if router else [], options))
        return soak(url, process, args.clients, 60 * args.minutes)


@contextmanager
def serving(router: list[str], options: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """A server of its own process, so that its memory is its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ir3de.scripts.cli", "serve", *router, "--port", str(port), *options]
    server = subprocess.Popen(command)
    try:
        yield f"http://127.0.0.1:{port}/v1", psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait(30)


def client_of(url: str) -> openai.OpenAI:
    """A client that does not try again by itself."""
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)


def soak(url: str, process: psutil.Process, clients: int, seconds: float) -> int:
    """Asks from many threads until time is up, and compares each answer with the one that a lone client got."""
    expected = references(url)
    warm, end = time.monotonic() + seconds / 5, time.monotonic() + seconds
    seen: Counter[str] = Counter()
    times: list[float] = []
    memory: list[int] = []
    threads = [
        threading.Thread(target=ask_until, args=(url, end, expected, seen, times, number)) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        time.sleep(1)
        if time.monotonic() > warm:
            memory.append(process.memory_info().rss)
    for thread in threads:
        thread.join()
    tenth = max(1, len(memory) // 10)
    first, last = (sorted(part)[len(part) // 2] for part in (memory[:tenth], memory[-tenth:]))
    growth = last / first - 1
    print(f"{clients} clients for {seconds:.0f} s: {dict(seen)}")
    if times:
        times.sort()
        middle, late = times[len(times) // 2], times[int(0.95 * len(times))]
        print(f"seconds an answer: median {middle:.1f}, 95 % within {late:.1f}; {len(times) / seconds:.1f} a second")
    sizes = f"{first / 2**20:.0f} MiB after the warm-up, {last / 2**20:.0f} at the end"
    print(f"memory of the server: {sizes} ({growth:+.1%})")
    good = {"answered", "streamed", "cancelled", "429"}
    return 0 if set(seen) <= good and seen["answered"] and growth < _MAX_GROWTH else 1


def references(url: str) -> dict[str, tuple[str, str]]:
    """The expert and the answer of each prompt, asked one by one."""
    prompts = [question.format(number) for number in range(3, 3 + _EACH) for question in QUESTIONS]
    client = client_of(url)
    for _ in range(240):
        try:
            client.models.list()
            break
        except openai.APIConnectionError:
            time.sleep(0.5)
    answers = {}
    for prompt in prompts:
        answer = client.chat.completions.create(**request(prompt))
        answers[prompt] = answer.model, answer.choices[0].message.content
    return answers


def request(prompt: str) -> dict[str, Any]:
    """A short answer without chance."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": "ir3de", "messages": messages, "max_tokens": _TOKENS, "temperature": 0}


def ask_until(
    url: str, end: float, expected: dict[str, tuple[str, str]], seen: Counter[str], times: list[float], number: int
) -> None:
    """A client: it asks for whole answers and streams in turn, and leaves some streams half read."""
    client, draw = client_of(url), random.Random(number)
    while time.monotonic() < end:
        prompt = draw.choice(list(expected))
        started = time.monotonic()
        try:
            what, got = ask(client, prompt, draw.random())
        except openai.RateLimitError:
            seen["429"] += 1
            time.sleep(1)
            continue
        except Exception as error:
            what, got = f"error {type(error).__name__}", None
        wrong = got is not None and got != expected[prompt]
        seen["answer of another request" if wrong else what] += 1
        times.append(time.monotonic() - started)


def ask(client: openai.OpenAI, prompt: str, chance: float) -> tuple[str, tuple[str, str] | None]:
    """What was done, and the expert and answer that came of it."""
    if chance < 0.5:
        answer = client.chat.completions.create(**request(prompt))
        return "answered", (answer.model, answer.choices[0].message.content or "")
    with client.chat.completions.create(**request(prompt), stream=True) as chunks:
        if chance < 0.6:
            next(iter(chunks))
            return "cancelled", None
        parts = list(chunks)
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    return "streamed", (parts[0].model, text)


if __name__ == "__main__":
    sys.exit(main())
