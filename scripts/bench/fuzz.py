"""`python scripts/bench/fuzz.py`: requests of every wrong kind; each must get an answer or a documented refusal.

Some experts of the router are behind a server that answers whatever comes, and one, of random weights, is on this
machine, so that both ways are tried.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from ir3de.scripts.bench.gateway import free_port, memory, process
from ir3de.scripts.bench.stand_in import StandIn

STATUSES = {200, 400, 404, 405, 413, 422, 429}
_HERE = "math"  # the expert on this machine
_SAID = "Find the roots of the polynomial x^2 - 5x + 6."
_BASES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": _SAID}], "max_tokens": 2},
    "completions": {"prompt": _SAID, "max_tokens": 2},
    "responses": {"input": _SAID, "max_output_tokens": 2},
    "messages": {"messages": [{"role": "user", "content": _SAID}], "max_tokens": 2},
}
_FIELDS = (
    *("model", "messages", "prompt", "input", "instructions", "system", "tools", "tool_choice", "functions", "stream"),
    *("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "stop", "stop_sequences", "seed", "temperature"),
    *("top_p", "top_k", "min_p", "logprobs", "top_logprobs", "logit_bias", "response_format", "text", "output_format"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "user", "prompt_cache_key", "stream_options"),
    *("previous_response_id", "ir3de", "metadata", "echo", "best_of", "suffix", "audio", "modalities", "background"),
)
_OPTIONS = ("experts", "min_score", "top_n", "variant", "num_votes", "explain", "generate", "stickiness", "route_on")
_KEYS = ("role", "content", "type", "text", "name", "function", "parameters", "arguments", "tool_calls", "tool_call_id")
_TEXTS = (
    *("", " ", "\x00", "\ud800", "a\udfff", "\u202e", "user", "tool", "assistant", "system", "function", "required"),
    *("json_schema", "json_object", "image_url", "tool_result", "tool_use", "thinking", "ir3de", _HERE, "coding"),
    *("{", '{"a": 1}', "x" * 5000, "<system-reminder>" * 50, "🙂" * 100, "\r\nx: y", "../../etc/passwd", "1e400"),
)


class Fuzz:
    """
    Makes requests.

    Args:
        seed (`int`): of the draw.
    """

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._kinds: tuple[Callable[[int], Any], ...] = (
            lambda _: self._draw.choice((None, True, False)),
            lambda _: self._draw.choice((0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400)),
            lambda _: self._draw.choice((0.0, -0.5, 1.5, 1e308, -1e308, 5e-324, 0.1)),
            lambda _: self._draw.choice(_TEXTS),
            lambda depth: [self.value(depth + 1) for _ in range(self._draw.randint(0, 3))],
            lambda depth: {self._key(): self.value(depth + 1) for _ in range(self._draw.randint(0, 3))},
        )

    def _key(self) -> str:
        return self._draw.choice((*_KEYS, *_OPTIONS, *_TEXTS[:5]))

    def value(self, depth: int = 0) -> Any:
        """A value of any kind, more often plain the deeper it is."""
        return self._draw.choice(self._kinds[: 4 if depth > 3 else None])(depth)

    def request(self) -> tuple[str, bytes, dict[str, str]]:
        """The API, the body and the headers of a request."""
        draw = self._draw
        api = draw.choice(list(_BASES))
        body = {"model": draw.choice(("ir3de", "ir3de", _HERE)), **json.loads(json.dumps(_BASES[api]))}
        for _ in range(draw.randint(0, 4)):
            self._change(body)
        text = json.dumps(body, ensure_ascii=draw.random() < 0.8)
        data = (
            self._spoiled(text.encode("utf-8", "surrogatepass"))
            if draw.random() < 0.2
            else text.encode("utf-8", "surrogatepass")
        )
        headers = {"content-type": draw.choice(("application/json", "text/plain", "application/json; charset=utf-16"))}
        if draw.random() < 0.2:
            name = draw.choice(("x-session-id", "x-request-id", "traceparent", "idempotency-key", "accept-encoding"))
            headers[name] = draw.choice(("", "a" * 4000, "\xff\xfe", "gzip", "00-0-0-1", "id-1"))
        return api, data, headers

    def _change(self, body: dict[str, Any]) -> None:
        draw = self._draw
        chance = draw.random()
        if chance < 0.15:
            body.pop(draw.choice(list(body) or ["model"]), None)
        elif chance < 0.35:
            body["ir3de"] = {draw.choice(_OPTIONS): self.value() for _ in range(draw.randint(0, 3))}
        elif chance < 0.6 and isinstance(body.get("messages"), list):
            message = {key: self.value() for key in draw.sample(_KEYS, draw.randint(0, 4))}
            body["messages"].insert(draw.randint(0, 1), {"role": draw.choice(_TEXTS[6:11]), **message})
        else:
            body[draw.choice(_FIELDS)] = self.value()

    def _spoiled(self, data: bytes) -> bytes:
        """A body that is cut, or has a byte changed, or something added."""
        draw = self._draw
        place = draw.randrange(len(data))
        added = draw.choice((b"\xff", b"1e999", b"NaN", b"[" * 3000, b'"', b"\x00", b"9" * 5000, b'\\ud83d"'))
        return draw.choice(
            (data[:place], data[:place] + added + data[place:], data[:place] + added + data[place + 1 :])
        )


def make_router(folder: Path, endpoint: str) -> Path:
    """The embedded router with one small expert on this machine, and the others behind a server."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.scripts.fitting.embedded import build

    model = IR3DEModel.from_pretrained(build(str(folder / "embedded")))
    sizes: Any = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocabulary = len(model.tokenizer)
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes)).save_pretrained(folder / "expert")
    model.tokenizer.save_pretrained(folder / "expert")
    others = [{"name": name, "endpoint": endpoint} for name in model.config.expert_names if name != _HERE]
    model.config.set_experts([*others, {"name": _HERE, "model": str(folder / "expert")}])
    model.save_pretrained(folder / "router")
    return folder / "router"


async def send(url: str, requests: int, seed: int, clients: int) -> tuple[Counter[str], list[str]]:
    """What came back of requests, and those that got what is not documented."""
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    fuzz = Fuzz(seed)
    left = iter(range(requests))

    async def client(session: aiohttp.ClientSession) -> None:
        """Sends requests while some are left."""
        for _ in left:
            api, data, headers = fuzz.request()
            try:
                async with session.post(f"{url}/{api}", data=data, headers=headers) as response:
                    text = await response.read()
                    said = f"{response.status}"
                    known = response.status in STATUSES and (response.status == 200 or b'"message"' in text)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                if isinstance(error, ValueError):  # the client does not send such a header
                    continue
                said, known = type(error).__name__, False
            seen[said] += 1
            if not known:
                wrong.append(f"{said}: {api} {headers} {data[:1000]!r}")

    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return seen, wrong


def main() -> int:
    """Prints how often which status came; 1 if one came that is not documented, or a connection broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="default: 10,000")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--clients", type=int, default=8, help="at once (default: 8)")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(StandIn(_answer, keep=False))
        port = free_port()
        command = [sys.executable, "-m", "ir3de.scripts.serve", str(make_router(folder, server.url)), "--no-log"]
        command += ["--port", str(port), "--preload"]
        running = stack.enter_context(process(command, f"http://127.0.0.1:{port}/ready"))
        before = memory(running)
        seen, wrong = asyncio.run(send(f"http://127.0.0.1:{port}/v1", args.requests, args.seed, args.clients))
        after = memory(running)
    print(f"{args.requests} requests: {dict(sorted(seen.items()))}")
    print(f"memory of the server: {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after")
    for each in wrong[:20]:
        print(f"WRONG: {each}")
    return int(bool(wrong))


async def _answer(request: Any, received: Any) -> Any:
    """Answers whatever came, as the body is a valid one in JSON's eyes alone."""
    from aiohttp import web

    return web.json_response({"object": "any", "size": len(received.body)})


if __name__ == "__main__":
    sys.exit(main())
