"""What a key's tokens a minute count: as the server says, as they were made here, or an estimate where nobody says."""

import asyncio
import gzip
import hashlib
import http.client
import json
from typing import Any

import pytest
from aiohttp import web

from ir3de.gateway.apis import CHAT, COMPLETIONS, MESSAGES, Api
from ir3de.gateway.estimate import Written, prompt_tokens
from ir3de.gateway.keys import Key
from ir3de.gateway.limits import Limits
from ir3de.gateway.requests import read_ask
from ir3de.gateway.settings import Settings
from ir3de.scripts.bench.stand_in import Received, Respond, answer, chat

from . import tiny
from .gateway_world import HASTY, LAW, World, world

EVE = {"authorization": "Bearer of-eve"}
KEYS = (Key("eve", hashlib.sha256(b"of-eve").hexdigest(), tokens_per_minute=8),)


def tokens(made: World, kind: str) -> float:
    """Tokens in the metrics, of all experts."""
    lines = made.send("GET", "/metrics").body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("ir3de_tokens_total") and kind in line)


def test_a_key_is_bound_where_a_stream_does_not_say_its_tokens() -> None:
    with world(settings=HASTY._replace(keys=KEYS)) as made:
        first = made.ask(stream=True, headers=EVE)
        assert first.status == 200
        assert b'"usage"' not in first.body
        assert first.body == answer("/v1/chat/completions", made.last("law").json), "nothing is added or taken out"
        assert "stream_options" not in made.last("law").json
        made.wait(lambda: tokens(made, "completion") > 0, "the answer is counted")
        assert tokens(made, '"prompt"') == len(["the", "court", "and", "a", "judge"])
        assert made.ask(stream=True, headers=EVE).status == 429


def test_what_a_server_says_is_not_estimated() -> None:
    with world() as made:
        made.ask(stream=True, stream_options={"include_usage": True})
        made.wait(lambda: tokens(made, "completion") > 0, "the answer is counted")
        assert (tokens(made, '"prompt"'), tokens(made, "completion")) == (11, 7)


async def _without_usage(request: web.Request, received: Received) -> web.StreamResponse:
    whole = {key: value for key, value in chat(received.json).items() if key != "usage"}
    return web.json_response(whole)


async def _compressed(request: web.Request, received: Received) -> web.StreamResponse:
    data = gzip.compress(json.dumps(chat(received.json)).encode())
    return web.Response(body=data, headers={"content-type": "application/json", "content-encoding": "gzip"})


@pytest.mark.parametrize("respond", [_without_usage, _compressed])
def test_an_answer_in_one_piece_that_does_not_say_is_estimated_too(respond: Respond) -> None:
    with world(responds={"law": respond}) as made:
        assert made.ask().expert == "law"
        made.wait(lambda: tokens(made, "completion") > 0, "the answer is counted")


@pytest.mark.parametrize("api", ["chat/completions", "messages"])
def test_who_leaves_before_the_tokens_are_said_has_spent_them(api: str) -> None:
    async def goes_on(request: web.Request, received: Received) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        if api == "messages":
            await response.write(b'data: {"message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}\n\n')
        for _ in range(10):
            await response.write(b'data: {"delta": {"text": "a judge "}}\n\n')
        await asyncio.sleep(30)
        return response

    with world(responds={"law": goes_on}) as made:
        connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=30)
        body = json.dumps({"model": "law", "messages": LAW, "stream": True, "max_tokens": 50})
        connection.request("POST", f"/v1/{api}", body, {"content-type": "application/json"})
        response = connection.getresponse()
        while b"judge" not in response.readline():
            pass
        connection.close()
        response.close()
        made.wait(lambda: tokens(made, "completion") > 1, "what came is counted")
        assert tokens(made, '"prompt"') == 5


@pytest.mark.parametrize("leaves", [False, True])
def test_an_expert_here_is_counted_by_what_it_made(leaves: bool, expert_specs: dict[str, dict[str, Any]]) -> None:
    limits = Limits(max_tokens=400, default_tokens=8, seconds=60)
    with world(expert_specs, Settings(limits=limits), names=()) as made:
        if leaves:
            connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=30)
            body = json.dumps({"model": "law", "messages": LAW, "stream": True, "max_tokens": 300})
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            response = connection.getresponse()
            response.readline()
            connection.close()
            response.close()
        else:
            assert made.ask(stream=True, max_tokens=6, temperature=0).status == 200
        made.wait(lambda: tokens(made, '"prompt"') > 0, "the request is counted")
        assert tokens(made, '"prompt"') == 5
        assert tokens(made, "completion") > 0 if leaves else tokens(made, "completion") == 6


@pytest.mark.parametrize(
    ("api", "fields", "expected"),
    [
        (CHAT, {"messages": LAW}, 5),
        (CHAT, {"messages": [{"role": "system", "content": "the court and a judge"}, *LAW]}, 10),
        (MESSAGES, {"messages": LAW, "system": "the court and a judge", "max_tokens": 3}, 10),
        (COMPLETIONS, {"prompt": [5, 6, 7]}, 3),
        (COMPLETIONS, {"prompt": [[5, 6, 7], [8]]}, 4),
        (CHAT, {"messages": [{"role": "user", "content": "the court and a judge " * 10_000}]}, 50_000),
    ],
)
def test_a_prompt_is_estimated_by_its_text(api: Api, fields: dict[str, Any], expected: int) -> None:
    limits = Limits(body=1 << 20)
    ask = read_ask(api, json.dumps({"model": "ir3de", **fields}).encode(), {}, limits, ["ir3de"], "")
    found = prompt_tokens(ask, tiny.tokenizer())
    assert expected <= found <= expected * 1.05 + 1


def test_an_answers_words_are_found_in_every_shape() -> None:
    written = Written()
    for data in (
        {"choices": [{"delta": {"role": "assistant", "content": "na\u00efve"}}]},
        {"choices": [{"delta": {"reasoning_content": 'say "x": 1'}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"name": "look", "arguments": '{"content": "π"}'}}]}}]},
        {"choices": [{"text": " and"}]},
        {"type": "response.output_text.delta", "delta": "court"},
        {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "\ud83d"}},
    ):
        written.add(f"data: {json.dumps(data)}\n\n".encode())
    assert written.beginning == 'na\u00efvesay "x": 1{"content": "π"} andcourt\ud83d'
    assert written.characters == len(written.beginning)
    assert written.tokens(tiny.tokenizer()) > 0
