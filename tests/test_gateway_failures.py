"""Servers that fail in every way: the next expert answers, or the client is told, and nothing is mixed up."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import openai
import pytest
from aiohttp import web

from ir3de.gateway.attempts import Patience
from ir3de.gateway.breaker import Breaker, BreakerOptions
from ir3de.gateway.limits import Timeouts
from ir3de.gateway.relay import Events
from ir3de.gateway.settings import Settings
from ir3de.scripts.bench.stand_in import Received, Respond, answer, chat_chunks, respond, response_events

from .gateway_world import LAW, World, world

QUICK = Settings(
    timeouts=Timeouts(connect=0.5, first_byte=0.5, idle=0.5),
    patience=Patience(retries=1, wait=0.01),
    breaker=BreakerOptions(failures=1000),
)


def status(code: int, **headers: str) -> Respond:
    """A server that answers nothing but this status."""

    async def fail(_: web.Request, __: Received) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=code, text="the secret of the server", headers=named)

    return fail


def stream(chunks: int, then: str) -> Respond:
    """A server that begins well and then stalls, breaks off within an event, or breaks off between two."""

    async def begin(request: web.Request, received: Received) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        events = chat_chunks(received.json)
        for event in events[:chunks]:
            await response.write(event)
        if then == "within":
            await response.write(events[chunks][:30])
        if then == "stall":
            await asyncio.sleep(30)
        assert request.transport is not None
        await asyncio.sleep(0.05)
        request.transport.abort()
        return response

    return begin


async def half_a_body(request: web.Request, received: Received) -> web.StreamResponse:
    """A server that breaks off in the middle of an answer in one piece."""
    body = answer(request.path, received.json)
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": str(len(body))})
    await response.prepare(request)
    await response.write(body[:100])
    await asyncio.sleep(0.02)
    assert request.transport is not None
    request.transport.abort()
    return response


async def silent(_: web.Request, __: Received) -> web.StreamResponse:
    """A server that never begins."""
    await asyncio.sleep(30)
    raise AssertionError


async def hang_up(request: web.Request, _: Received) -> web.StreamResponse:
    """A server that closes the connection before its answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


BEFORE: dict[str, tuple[Respond, int]] = {  # what fails before the first byte, and how often it is tried
    "500": (status(500), 2),
    "503": (status(503), 2),
    "429": (status(429), 2),
    "401": (status(401), 1),
    "404": (status(404), 1),
    "a redirect": (status(302, location="http://127.0.0.1:9/"), 1),
    "no answer": (silent, 1),
    "a closed connection": (hang_up, 2),
    "half an answer": (half_a_body, 2),
}


@pytest.mark.parametrize("how", BEFORE)
def test_before_the_first_byte_the_next_expert_answers(how: str) -> None:
    failing, tries = BEFORE[how]
    with world(settings=QUICK, responds={"law": failing}) as made:
        for stream_ in (False, True) if how != "half an answer" else (False,):
            made.behind["law"].received.clear()
            answered = made.ask(stream=stream_)
            assert answered.status == 200
            assert answered.expert in ("code", "math")
            assert answered.body == answer("/v1/chat/completions", made.last(str(answered.expert)).json)
            assert len(made.behind["law"].received) == tries
        named = made.ask(model="law")
        assert named.status == (429 if how.startswith("429") else 502), "nobody else was asked for"
        assert "secret" not in named.body.decode()
        assert named.code in ("busy", "expert_failed")


def test_a_server_that_is_not_there_is_one_that_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with world({"law": {"endpoint": f"http://127.0.0.1:{port}/v1"}}, settings=QUICK) as made:
        answered = made.ask(ir3de={})
        assert answered.expert in ("code", "math")
        assert {"expert": "law", "error": "no connection"} in answered.json["ir3de"]["failures"]
        assert str(port) not in answered.body.decode(), "its address stays here"


def test_where_all_fail_the_error_says_who_and_why() -> None:
    with world(settings=QUICK, responds=dict.fromkeys(("code", "law", "math"), status(500))) as made:
        answered = made.ask()
        assert (answered.status, answered.code) == (502, "expert_failed")
        assert "law: status 500" in answered.json["error"]["message"]
        assert sum(len(server.received) for server in made.behind.values()) == 6, "three experts, two tries each"
        assert made.ask("messages", max_tokens=5).json["error"]["type"] == "api_error"
    with world(settings=QUICK, responds=dict.fromkeys(("code", "law", "math"), status(429, retry_after="7"))) as made:
        answered = made.ask()
        assert (answered.status, answered.headers["retry-after"]) == (429, "7")


def test_a_failure_does_not_lower_the_bar() -> None:
    """An expert below the minimum does not answer because the one above it is down; the fallback may."""
    with world(settings=QUICK, responds={"law": status(500)}) as made:
        assert made.ask(ir3de={"min_score": 0.4}).status == 502
        assert made.ask(ir3de={"min_score": 0.4, "fallback_expert": "math"}).expert == "math"
        assert not made.behind["code"].received
    with world(settings=QUICK, responds={"law": status(500)}, min_score=0.4, fallback_expert="code") as made:
        assert made.ask().expert == "code"
        assert not made.behind["math"].received


# After the first byte.


@pytest.mark.parametrize("how", ["stall", "within", "between"])
@pytest.mark.parametrize("api", ["chat/completions", "messages"])
def test_after_the_first_byte_the_stream_ends_with_an_error_event(how: str, api: str) -> None:
    with world(settings=QUICK, responds={"law": stream(3, how)}) as made:
        answered = made.ask(api, stream=True, max_tokens=9)
        assert answered.status == 200
        sent = b"".join(chat_chunks(made.last("law").json)[:3])
        assert answered.body.startswith(sent)
        error = answered.body[len(sent) :].decode()
        if api == "messages":
            assert error.startswith("event: error\n")
        data = json.loads(error.split("data: ", 1)[1])
        assert "in the middle of its answer" in data["error"]["message"]
        assert error.endswith("\n\n")
        assert not made.behind["code"].received
        assert not made.behind["math"].received
        assert made.ask(model="code").status == 200


def test_the_error_event_of_a_response_has_the_next_number() -> None:
    async def begin(request: web.Request, received: Received) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in response_events(received.json)[:3]:
            await response.write(event)
            await asyncio.sleep(0.01)
        assert request.transport is not None
        request.transport.abort()
        return response

    with world(settings=QUICK, responds={"law": begin}) as made:
        client = openai.OpenAI(base_url=made.url, api_key="none", max_retries=0)
        with client.responses.create(model="ir3de", input="the court and a judge", stream=True) as events:
            numbers = [event.sequence_number for event in events]
        assert numbers == [0, 1, 2, 3]


def test_openais_client_raises_what_the_event_says() -> None:
    with world(settings=QUICK, responds={"law": stream(3, "within")}) as made:
        client = openai.OpenAI(base_url=made.url, api_key="none", max_retries=0)
        chunks = client.chat.completions.create(model="ir3de", messages=LAW, stream=True)  # type: ignore[arg-type]
        assert [next(chunks).choices[0].delta.content for _ in range(3)] == ["", "Forty", "-two"]
        with pytest.raises(openai.APIError, match="in the middle"):
            next(chunks)


def test_a_comment_keeps_a_stream_alive() -> None:
    async def thoughtful(request: web.Request, received: Received) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(4):
            await asyncio.sleep(0.3)
            await response.write(b": ping\n\n")
        for event in chat_chunks(received.json):
            await response.write(event)
        return response

    with world(settings=QUICK, responds={"law": thoughtful}) as made:
        answered = made.ask(stream=True, ir3de={})
        assert answered.body.count(b": ping") == 4
        assert answered.body.endswith(b"data: [DONE]\n\n")
        assert answered.body.count(b'"ir3de"') == 1


def test_events_are_passed_on_whole() -> None:
    events = Events()
    assert events.complete(b"data: 1\n\ndata: 2") == b"data: 1\n\n"
    assert events.complete(b"2\n") == b""
    assert events.complete(b"\ndata: 3\r\n\r\nda") == b"data: 22\n\ndata: 3\r\n\r\n"
    assert events.rest() == b"da"
    assert Events().complete(b"x" * (1 << 21)) == b"x" * (1 << 21)


# The breaker.


def test_a_breaker_opens_after_failures_in_a_row_and_one_request_tries_again() -> None:
    now = 0.0
    breaker = Breaker(BreakerOptions(failures=3, seconds=5, most_seconds=15), lambda: now)
    for _ in range(2):
        assert breaker.admit()
        breaker.failed()
    breaker.succeeded()
    for _ in range(3):
        assert breaker.admit()
        breaker.failed()
    assert not breaker.admit()
    assert breaker.wait == 5
    now = 5.0
    assert breaker.admit()
    assert not breaker.admit(), "one at a time"
    breaker.failed()
    assert breaker.wait == 10
    now = 15.0
    assert breaker.admit()
    breaker.left()
    assert breaker.admit(), "who left said nothing of the expert"
    breaker.failed()
    assert breaker.wait == 15, "no longer than the longest"
    now = 40.0
    assert breaker.admit()
    breaker.began()
    for _ in range(3):
        assert breaker.admit(), "answers have begun"
        breaker.broke_off()
    assert breaker.wait == 15, "but none is complete"
    now = 55.0
    assert breaker.admit()
    breaker.began()
    breaker.broke_off()
    assert breaker.wait == 15
    now = 70.0
    assert breaker.admit()
    breaker.succeeded()
    assert all(breaker.admit() for _ in range(3))
    breaker.rest(99)
    assert not breaker.admit()
    assert not breaker.is_open
    now = 85.0
    assert breaker.admit()
    assert breaker.admit()


def test_an_expert_that_fails_is_left_alone_and_comes_back() -> None:
    settings = QUICK._replace(breaker=BreakerOptions(failures=4, seconds=0.3))
    with world(settings=settings, responds={"law": status(500)}) as made:
        for _ in range(2):
            made.ask()
        tried = len(made.behind["law"].received)
        assert tried == 4
        answered = made.ask()
        assert answered.expert in ("code", "math")
        assert len(made.behind["law"].received) == tried
        named = made.ask(model="law")
        assert (named.status, named.headers["retry-after"]) == (503, "1")
        assert 'ir3de_breaker_open{expert="law"} 1.0' in made.send("GET", "/metrics").body.decode()
        made.behind["law"].respond = respond
        time.sleep(0.35)
        assert made.ask().expert == "law"
        assert 'ir3de_breaker_open{expert="law"} 0.0' in made.send("GET", "/metrics").body.decode()


@pytest.mark.parametrize("api", ["chat/completions", "messages"])
def test_a_server_that_breaks_off_again_and_again_is_left_alone(api: str) -> None:
    settings = QUICK._replace(breaker=BreakerOptions(failures=3, seconds=60))
    with world(settings=settings, responds={"law": stream(3, "between")}) as made:
        for _ in range(3):
            assert made.ask(api, stream=True, max_tokens=9).expert == "law"
        made.wait(lambda: made.ask(api, max_tokens=9).expert != "law", "it is left alone")
        text = made.send("GET", "/metrics").body.decode()
        assert 'ir3de_expert_failures_total{expert="law"} 3.0' in text
        assert 'ir3de_breaker_open{expert="law"} 1.0' in text


def test_a_stream_that_is_complete_forgets_the_failures_before() -> None:
    settings = QUICK._replace(breaker=BreakerOptions(failures=2, seconds=60))
    with world(settings=settings) as made:
        for _ in range(3):
            for respond_ in (stream(3, "between"), respond):
                made.behind["law"].respond = respond_
                assert made.ask(stream=True).expert == "law"


def soon(seconds: float) -> str:
    """A date so many seconds from now, as HTTP has it."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("after", ["30", "30.5", "a date"])
def test_a_server_that_asks_to_be_left_alone_is(after: str) -> None:
    after = soon(32) if after == "a date" else after
    with world(settings=QUICK, responds={"law": status(429, retry_after=after)}) as made:
        named = made.ask(model="law")
        assert (named.status, named.code) == (429, "busy")
        assert 20 < int(named.headers["retry-after"]) <= 32
        for _ in range(3):
            assert made.ask().expert in ("code", "math")
        assert len(made.behind["law"].received) == 1
        named = made.ask(model="law")
        assert (named.status, named.code) == (503, "expert_unavailable")
        assert 20 < int(named.headers["retry-after"]) <= 32
        assert not made.gateway.attempts.breaker("law", made.gateway.serving).is_open


@pytest.mark.parametrize("after", ["soon", "-5", "1e9", "nan", "999999999", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_wait_that_makes_no_sense_is_none(after: str) -> None:
    with world(settings=QUICK, responds={"law": status(429, retry_after=after)}) as made:
        for _ in range(2):
            assert made.ask().expert in ("code", "math")
        assert len(made.behind["law"].received) == 4


TOO_LONG = (
    (400, '{"error": {"message": "no", "code": "context_length_exceeded"}}'),
    (400, '{"message": "This model\'s maximum context length is 9 tokens. However, you requested 12 tokens"}'),
    (400, '{"error": {"code": 400, "message": "the request exceeds the available context size, try increasing it"}}'),
    (400, '{"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 > 5"}}'),
    (422, '{"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096."}'),
)


@pytest.mark.parametrize(("code", "said"), TOO_LONG)
def test_what_is_too_long_for_one_server_goes_to_a_larger_window(code: int, said: str) -> None:
    async def small(request: web.Request, received: Received) -> web.StreamResponse:
        response = web.Response(status=code, text=said, content_type="application/json")
        coding = received.headers.get("accept-encoding")
        if coding in ("gzip", "deflate"):
            response.enable_compression(web.ContentCoding(coding))
        return response

    specs: dict[str, dict[str, Any]] = {"law": {"context": 9000}, "code": {"context": 8000}}
    with world(specs, settings=QUICK, responds=dict.fromkeys(("law", "code"), small)) as made:
        answered = made.ask(ir3de={})
        assert (answered.status, answered.expert) == (200, "math")
        assert not made.behind["code"].received, "its window is known to be no larger"
        assert answered.json["ir3de"]["failures"] == [{"expert": "law", "error": "too long for its window"}]
        assert made.ask(stream=True).expert == "math"
        for coding in ("gzip", "deflate", "br"):
            assert made.ask(headers={"accept_encoding": coding}).expert == "math"
        named = made.ask(model="law")
        assert (named.status, named.body.decode(), named.expert) == (code, said, "law"), "as it came"
        made.behind["math"].respond = small
        assert (made.ask().status, made.ask().expert) == (code, "law"), "where none does, what the first said"
        made.behind["math"].respond = status(500)
        assert (made.ask().status, made.ask().expert) == (code, "law")
        assert not made.gateway.attempts.breaker("law", made.gateway.serving).is_open


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"message": "bad value: user said 'what is context length?'", "code": "invalid"}},
        {"detail": [{"msg": "field required", "input": "What is the maximum context length of a model?"}]},
    ],
)
def test_what_a_server_repeats_of_a_request_is_no_reason(said: Any) -> None:
    async def refuse(request: web.Request, received: Received) -> web.StreamResponse:
        return web.json_response(said, status=422)

    with world(settings=QUICK, responds={"law": refuse}) as made:
        assert made.ask().status == 422


def test_what_is_wrong_with_a_request_does_not_open_a_breaker() -> None:
    settings = QUICK._replace(breaker=BreakerOptions(failures=2, seconds=60))
    for code in (400, 429):
        with world(settings=settings, responds={"law": status(code)}) as made:
            for _ in range(4):
                made.ask(model="law")
            made.behind["law"].respond = respond
            assert made.ask().expert == "law"


SAID = {"role": "user", "content": [{"type": "text", "text": "the court and a judge"}]}


LLAMA_CPP = (
    "\n------------\nWhile executing CallExpression at line 1, column 70 in source:\n... raise_exception('System role n"
    "...\nError: Jinja Exception: System role not supported"
)


@pytest.mark.parametrize(("status", "message"), [(400, "System role not supported"), (500, LLAMA_CPP)])
@pytest.mark.parametrize(
    ("api", "asked", "field", "folded"),
    [
        ("chat/completions", LAW, "messages", [{"role": "user", "content": "Be brief.\n\nthe court and a judge"}]),
        (
            "chat/completions",
            [SAID],
            "messages",
            [{"role": "user", "content": [{"type": "text", "text": "Be brief."}, *SAID["content"]]}],
        ),
        ("responses", "the court and a judge", "input", "Be brief.\n\nthe court and a judge"),
    ],
)
def test_a_system_prompt_of_the_spec_is_not_what_a_client_is_refused_for(
    status: int, message: str, api: str, asked: Any, field: str, folded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def without_system(request: web.Request, got: Received) -> web.StreamResponse:
        conversation = got.json.get("messages", [])
        if "instructions" in got.json or any(message["role"] == "system" for message in conversation):
            return web.json_response({"error": {"code": status, "message": message}}, status=status)
        return await respond(request, got)

    spec = {"law": {"system_prompt": "Be brief."}}
    with world(spec, settings=QUICK, responds={"law": without_system}) as made:
        fields = {"messages": None, field: asked}
        for _ in range(2):
            answered = made.ask(api, **fields)
            assert (answered.status, answered.expert) == (200, "law")
            assert made.last("law").json[field] == folded
        if isinstance(asked, list):
            kept = b'"n": 0.10, "content": "a"}'
            body = b'{"model": "law", "messages": [{"role": "user", %s, {"role": "assistant", %s]}' % (kept, kept)
            made.send("POST", f"/v1/{api}", body)
            assert made.last("law").body.count(b'"n": 0.10') == 2, "numbers keep their text"
            made.behind["law"].received.pop()
        assert len(made.behind["law"].received) == 3  # the second request was not refused first
        assert "refuses system messages" in caplog.text
        assert not made.gateway.attempts.breaker("law", made.gateway.serving).is_open
        own = [{"role": "system", "content": "Be long."}, *LAW]  # what the client says is the client's
        assert (made.ask(model="law", messages=own).status, made.last("law").json["messages"]) == (
            {400: 400, 500: 502}[status],
            own,
        )


def test_a_server_that_is_broken_is_not_taken_for_one_without_system_messages() -> None:
    async def broken(request: web.Request, got: Received) -> web.StreamResponse:
        said = "CUDA error: out of memory while the system prompt was read"
        return web.json_response({"error": {"code": 500, "message": said}}, status=500)

    with world({"law": {"system_prompt": "Be brief."}}, settings=QUICK, responds={"law": broken}) as made:
        assert made.ask(model="law").status == 502
        assert {received.json["messages"][0]["role"] for received in made.behind["law"].received} == {"system"}
        assert not made.gateway.serving.experts["law"].no_system


# Clients that leave.


@pytest.fixture(scope="module")
def slow() -> Iterator[World]:
    """A server that streams without end, or thinks for long."""

    async def endless(request: web.Request, received: Received) -> web.StreamResponse:
        if not received.json.get("stream"):
            await asyncio.sleep(30)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b'data: {"choices":[]}\n\n')
            await asyncio.sleep(0.01)

    with world(responds={"law": endless}) as made:
        yield made


@pytest.mark.parametrize("stream_", [True, False])
def test_a_client_that_leaves_frees_the_server(slow: World, stream_: bool) -> None:
    body = json.dumps({"model": "ir3de", "messages": LAW, "stream": stream_}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", slow.port)) as connection:
        connection.sendall(head + body)
        slow.wait(lambda: slow.behind["law"].open == 1, "nothing came to the server")
        if stream_:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    slow.wait(lambda: slow.behind["law"].open == 0, "the server works for nobody")
    text = slow.send("GET", "/metrics").body.decode()
    assert "ir3de_requests_inside 0.0" in text
    assert 'expert="law",outcome="left"' in text if stream_ else 'outcome="left"' in text


# Many at once.


def test_faults_at_random_lose_and_mix_up_nothing() -> None:
    """Each request says a number, and the server that answers says it again."""
    kinds: list[Any] = [respond, respond, status(500), status(429), hang_up, half_a_body, "echo", "echo", "echo"]
    turn = iter(range(10**9))
    lock = threading.Lock()

    async def faulty(request: web.Request, received: Received) -> web.StreamResponse:
        with lock:
            kind = kinds[next(turn) * 7 % len(kinds)]
        if kind == "echo" or kind is respond:
            said = received.json["messages"][-1]["content"]
            return web.json_response({"said": said, "by": received.json["model"]})
        response: web.StreamResponse = await kind(request, received)
        return response

    settings = QUICK._replace(timeouts=Timeouts(connect=5, first_byte=5, idle=5))
    with world(settings=settings, responds=dict.fromkeys(("code", "law", "math"), faulty)) as made:

        def ask(number: int) -> tuple[int, int]:
            answered = made.ask(messages=[{"role": "user", "content": f"the court and a judge {number}"}])
            if answered.status == 200:
                assert answered.json["said"].endswith(f" {number}")
                assert answered.json["by"] == f"served-{answered.expert}"
            else:
                assert answered.code in ("busy", "expert_failed", "expert_unavailable")
            return number, answered.status

        with ThreadPoolExecutor(16) as threads:
            results = list(threads.map(ask, range(400)))
        assert [number for number, _ in results] == list(range(400))
        assert sum(code == 200 for _, code in results) > 380
