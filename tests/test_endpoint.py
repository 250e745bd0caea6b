"""The endpoint, through OpenAI's own client and through requests that no client would send."""

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from ir3de import IR3DERoutingPipeline
from ir3de.completions import Limits
from ir3de.endpoint import endpoint

from . import tiny
from .hub_server import running

LAW = [{"role": "user", "content": "the court and a judge"}]
LIMITS = Limits(body=20_000, messages=8, characters=4_000, max_tokens=400, default_tokens=8, at_once=2, waiting=2)


class Server:
    """A running endpoint."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

    def post(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Sends bytes as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def ask(self, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Asks for a short answer."""
        return self.post(json.dumps({"model": "ir3de", "messages": LAW, "max_tokens": 4, **fields}).encode())


def serving(router: Any, limits: Limits = LIMITS, **kwargs: Any) -> Iterator[Server]:
    app = Starlette(routes=[Mount("/v1", endpoint(router, limits, **kwargs))])
    with socket.create_server(("127.0.0.1", 0)) as listener, running(app, listener):
        yield Server(listener.getsockname()[1])


@pytest.fixture(scope="module")
def server(pipe: IR3DERoutingPipeline) -> Iterator[Server]:
    """The endpoint of a router whose experts answer."""
    yield from serving(pipe)


# OpenAI's client.


def test_an_answer_names_its_expert_and_the_route(server: Server, pipe: IR3DERoutingPipeline) -> None:
    answer = server.client.chat.completions.create(model="ir3de", messages=LAW, max_tokens=6, temperature=0)
    assert answer.model == "law"
    assert answer.choices[0].message.content == pipe(LAW, max_new_tokens=6, do_sample=False)["generated_text"]
    record = pipe(LAW, generate=False)
    assert answer.ir3de == {key: record[key] for key in ("expert", "score", "ranking")}
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.total_tokens == 5 + answer.usage.completion_tokens


def test_a_stream_gives_the_same_answer_and_each_chunk_names_the_expert(server: Server) -> None:
    asked: dict[str, Any] = {"model": "ir3de", "messages": LAW, "max_tokens": 6, "temperature": 0}
    whole = server.client.chat.completions.create(**asked)
    chunks = list(server.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert {chunk.model for chunk in chunks} == {"law"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].ir3de == whole.ir3de
    *pieces, end, usage = chunks
    assert "".join(piece.choices[0].delta.content for piece in pieces) == whole.choices[0].message.content
    assert end.choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert usage.usage == whole.usage


def test_models_are_the_router_and_its_experts(server: Server) -> None:
    assert [model.id for model in server.client.models.list()] == ["ir3de", "code", "law", "math"]
    assert server.client.models.retrieve("math").owned_by == "ir3de"
    with pytest.raises(openai.NotFoundError, match="no model 'art'"):
        server.client.models.retrieve("art")


def test_an_expert_can_be_asked_by_name(server: Server) -> None:
    answer = server.client.chat.completions.create(model="math", messages=LAW)
    assert answer.model == "math"
    assert answer.ir3de["ranking"] == [{"expert": "math", "score": 1.0}]


def test_a_wrong_model_is_refused_as_openai_does(server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        server.client.chat.completions.create(model="gpt-4", messages=LAW)
    assert refused.value.code == "model_not_found"
    assert refused.value.param == "model"
    assert refused.value.type == "invalid_request_error"


def test_routing_options_go_in_a_field_of_their_own(server: Server) -> None:
    def ask(**options: Any) -> Any:
        return server.client.chat.completions.create(model="ir3de", messages=LAW, extra_body={"ir3de": options})

    assert ask(experts=["code", "math"]).model in ("code", "math")
    assert "tokens" in ask(explain=True, top_n=1).ir3de
    with pytest.raises(openai.UnprocessableEntityError, match="min_score"):
        ask(min_score=1)
    assert ask(min_score=1, fallback_expert="code").ir3de["fallback"]
    for wrong in (
        {"experts": ["art"]},
        {"variant": "best"},
        {"generate": False},
        {"min_score": "high"},
        {"second_below": 1},
    ):
        with pytest.raises(openai.BadRequestError):
            ask(**wrong)


def test_a_conversation_keeps_its_roles(server: Server, pipe: IR3DERoutingPipeline) -> None:
    chat = [
        {"role": "system", "content": "show python"},
        {"role": "user", "content": [{"type": "text", "text": "debug my loop"}]},
        {"role": "assistant", "content": "how"},
        {"role": "user", "content": "why"},
    ]
    answer = server.client.chat.completions.create(
        model="code", messages=chat, max_tokens=5, temperature=0, extra_body={"ir3de": {"route_on": "conversation"}}
    )
    expected = pipe(chat, experts=["code"], max_new_tokens=5, do_sample=False)["generated_text"]
    assert answer.choices[0].message.content == expected


def test_a_stop_string_ends_an_answer_before_it(server: Server) -> None:
    asked: dict[str, Any] = {"model": "law", "messages": LAW, "max_tokens": 12, "temperature": 0}
    text = server.client.chat.completions.create(**asked).choices[0].message.content
    stop = text.split()[3]
    expected = text[: text.index(stop)]
    answer = server.client.chat.completions.create(**asked, stop=["never", stop])
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    chunks = list(server.client.chat.completions.create(**asked, stop=stop, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_a_seed_repeats_a_sampled_answer(server: Server) -> None:
    texts = {
        server.client.chat.completions.create(model="law", messages=LAW, temperature=1.5, seed=seed, max_tokens=12)
        .choices[0]
        .message.content
        for seed in (1, 1, 2)
    }
    assert len(texts) == 2


class Slow:
    """Stands in for a pipeline's stream: a word every 20 ms, and it knows when it is closed."""

    def __init__(self) -> None:
        self.open = 0
        self.most = 0
        self._lock = threading.Lock()

    def __call__(self, prompt: Any, max_new_tokens: int, **_: Any) -> Iterator[dict[str, Any]]:
        with self._lock:
            self.open += 1
            self.most = max(self.most, self.open)
        try:
            route = {"expert": "law", "score": 1.0, "ranking": []}
            yield {"event": "route", **route}
            for _ in range(max_new_tokens):
                time.sleep(0.02)
                yield {"event": "text", "text": f"{prompt[-1]['content']} "}
            yield {"event": "record", **route, "generated_text": ""}
        finally:
            with self._lock:
                self.open -= 1

    def wait(self, number: int) -> None:
        """Waits until so many are open."""
        end = time.monotonic() + 5
        while self.open != number:
            assert time.monotonic() < end, f"{self.open} generations are open, not {number}"
            time.sleep(0.01)


@pytest.fixture
def slow(pipe: IR3DERoutingPipeline) -> Iterator[tuple[Server, Slow]]:
    """An endpoint whose answers take their time."""
    stream = Slow()
    for server in serving(pipe, stream=stream):
        yield server, stream


def test_a_cancelled_stream_stops_the_generation(slow: tuple[Server, Slow]) -> None:
    server, stream = slow
    with server.client.chat.completions.create(model="ir3de", messages=LAW, max_tokens=400, stream=True) as chunks:
        assert [next(chunks).model for _ in range(3)] == ["law"] * 3
        assert stream.open == 1
    stream.wait(0)


def test_a_client_that_leaves_stops_the_generation(slow: tuple[Server, Slow]) -> None:
    server, stream = slow
    with pytest.raises(openai.APITimeoutError):
        server.client.with_options(timeout=0.3).chat.completions.create(model="ir3de", messages=LAW, max_tokens=400)
    stream.wait(0)


def test_answers_belong_to_their_requests_and_too_many_are_refused(slow: tuple[Server, Slow]) -> None:
    server, stream = slow

    def ask(word: str) -> str:
        try:
            messages: Any = [{"role": "user", "content": word}]
            answer = server.client.chat.completions.create(model="ir3de", messages=messages, max_tokens=20)
            return str(answer.choices[0].message.content)
        except openai.RateLimitError as error:
            return f"{error.code}, try again in {error.response.headers['retry-after']} s"

    words = [f"word{index}" for index in range(10)]
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(ask, words))
    assert answers.count("busy, try again in 1 s") == 6, "two are answered at once, two wait"
    assert stream.most == 2
    for word, answer in zip(words, answers, strict=True):
        assert answer.startswith("busy") or answer == f"{word} " * 20
    stream.wait(0)
    assert ask("again") == "again " * 20, "there is room again"


def test_who_waits_and_leaves_is_forgotten(slow: tuple[Server, Slow]) -> None:
    server, stream = slow
    create = server.client.chat.completions.create
    held = [create(model="ir3de", messages=LAW, max_tokens=400, stream=True) for _ in range(2)]
    for _ in range(3):  # more than may wait, one after another
        with pytest.raises(openai.APITimeoutError):
            server.client.with_options(timeout=0.2).chat.completions.create(model="ir3de", messages=LAW)
        time.sleep(0.05)
    for chunks in held:
        chunks.close()
    stream.wait(0)
    assert create(model="ir3de", messages=LAW, max_tokens=1).model == "law"


# Hostile requests.


def test_a_large_body_is_refused_before_it_is_read(server: Server) -> None:
    for headers in ({}, {"transfer-encoding": "chunked"}):
        body = json.dumps({"model": "ir3de", "messages": [{"role": "user", "content": "x" * 10_000_000}]}).encode()
        sent: Any = body if not headers else (body[i : i + 65536] for i in range(0, len(body), 65536))
        client = server.client.with_options()._client
        response = client.post(f"{server.client.base_url}chat/completions", content=sent)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "too_large"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("content-length", "10000000")
    connection.endheaders()
    assert connection.getresponse().status == 413, "although no byte of the body was sent"


HOSTILE: dict[str, Any] = {
    "no JSON": b"{broken",
    "no text": b"\xff\xfe",
    "empty": b"",
    "a list": b"[]",
    "deep": b"[" * 9_000,
    "deeper in a message": b'{"model":"ir3de","messages":[{"role":"user","content":' + b"[" * 5_000,
    "not a number": b'{"model":"ir3de","messages":[{"role":"user","content":"a"}],"temperature":NaN}',
    "a raw control character": b'{"model":"ir3de","messages":[{"role":"user","content":"a\x00"}]}',
    "an escape sequence": {"messages": [{"role": "user", "content": "\x1b[2Jcourt"}]},
    "half a character": {"messages": [{"role": "user", "content": "\ud800"}]},
    "many messages": {"messages": LAW * 9},
    "no messages": {"messages": []},
    "messages in messages": {"messages": [[LAW]]},
    "a long prompt": {"messages": [{"role": "user", "content": "court " * 1000}]},
    "an empty prompt": {"messages": [{"role": "user", "content": ""}]},
    "an image": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///"}}]}]},
    "a number as content": {"messages": [{"role": "user", "content": 1}]},
    "an unknown role": {"messages": [{"role": "root", "content": "court"}]},
    "huge max_tokens": {"max_tokens": 10**9},
    "no tokens": {"max_tokens": 0},
    "half a token": {"max_completion_tokens": 0.5},
    "hot": {"temperature": 9},
    "many answers": {"n": 100},
    "tools": {"tools": [{"type": "function"}]},
    "a stream that is no flag": {"stream": "yes"},
    "a stop that is none": {"stop": [""]},
    "a negative seed": {"seed": -1},
    "routing options that are none": {"ir3de": ["explain"]},
    "a model that is none": {"model": {"a": 1}},
}


@pytest.mark.parametrize("request_", HOSTILE.values(), ids=HOSTILE)
def test_hostile_requests_are_refused_with_a_clear_status(
    server: Server, request_: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        status, answer = server.post(request_) if isinstance(request_, bytes) else server.ask(**request_)
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert "Traceback" not in caplog.text
    assert server.ask()[0] == 200


def test_markup_comes_back_as_it_was_sent(pipe: IR3DERoutingPipeline) -> None:
    for server in serving(pipe, stream=Slow()):
        _, answer = server.ask(messages=[{"role": "user", "content": "<script>alert(1)</script>"}], max_tokens=1)
        assert answer["choices"][0]["message"]["content"] == "<script>alert(1)</script> "


def test_other_addresses_and_methods_have_errors_in_the_same_form(server: Server) -> None:
    for method, path, status in (("GET", "/v1/chat/completions", 405), ("POST", "/v1/files", 404)):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request(method, path)
        response = connection.getresponse()
        assert response.status == status
        assert "message" in json.loads(response.read())["error"]


def test_what_an_expert_fails_with_stays_here(
    expert_specs: dict[str, dict[str, Any]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    specs = {"code": expert_specs["code"], "law": {"model": "/secret/folder"}, "math": {"model": "/secret/other"}}
    router = IR3DERoutingPipeline(tiny.router(specs), device="cpu")
    for server in serving(router):
        with caplog.at_level(logging.DEBUG):
            status, failed = server.ask(model="law")
            _, answer = server.ask()
            unread = server.ask(stream=True, model="math", max_tokens=400)[0]
    assert status == unread == 502
    assert failed["error"]["type"] == "server_error"
    assert answer["model"] == "code", "the next that can"
    assert answer["ir3de"]["failures"][0] == {"expert": "law"}
    for text in (json.dumps([failed, answer]), caplog.text):
        assert "secret" not in text


def test_an_expert_that_fails_in_the_middle_ends_the_stream_with_an_error(pipe: IR3DERoutingPipeline) -> None:
    def stream(*_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        yield {"event": "route", "expert": "law", "score": 1.0, "ranking": []}
        yield {"event": "text", "text": "half"}
        yield {"event": "route", "expert": "code", "score": 0.0, "ranking": []}
        yield {"event": "text", "text": "other"}

    for server in serving(pipe, stream=stream):
        chunks = server.client.chat.completions.create(model="ir3de", messages=LAW, stream=True)
        assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["", "half"]
        with pytest.raises(openai.APIError, match="in the middle"):
            next(chunks)
        assert server.ask()[0] == 502
