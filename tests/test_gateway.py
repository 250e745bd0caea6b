"""The gateway's rule, read little and forward everything: what a server receives, and what comes back of it."""

import asyncio
import gzip
import http.client
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest
from aiohttp import web

from ir3de import IR3DERoutingPipeline
from ir3de.addresses_ir3de import token_variable
from ir3de.gateway.body import Body
from ir3de.gateway.errors import GatewayError
from ir3de.gateway.serving import served
from ir3de.gateway.settings import Settings
from ir3de.scripts.bench.fuzz import STATUSES, Fuzz
from ir3de.scripts.bench.stand_in import Received, StandIn, answer

from . import tiny
from .gateway_world import CODE, LAW, World, world

APIS: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": LAW},
    "completions": {"prompt": "the court and a judge", "messages": None},
    "responses": {"input": "the court and a judge", "messages": None},
    "messages": {"messages": LAW, "max_tokens": 64},
}


@pytest.fixture(scope="module")
def three() -> Iterator[World]:
    """A gateway with three servers in good health."""
    with world() as made:
        yield made


# Bytes.


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_comes_back_byte_for_byte(three: World, api: str, stream: bool) -> None:
    fields = {**APIS[api], "stream": stream}
    answered = three.ask(api, **fields)
    assert answered.status == 200
    assert answered.expert == "law"
    received = three.last("law")
    assert received.path == f"/v1/{api}"
    assert received.json["model"] == "served-law"
    assert answered.body == answer(f"/v1/{api}", received.json)
    assert float(answered.headers["x-ir3de-score"]) > 0.4
    assert answered.headers["x-request-id"]
    if stream and api != "completions":
        assert answered.headers["content-type"] == "text/event-stream"
        assert answered.headers["x-of-the-server"] == "1"


def random_json(draw: random.Random, depth: int = 0) -> Any:
    """A value of any kind that JSON has."""
    kinds: list[Any] = [
        lambda: draw.choice([None, True, False]),
        lambda: draw.randint(-(10 ** draw.randint(0, 30)), 10 ** draw.randint(0, 30)),
        lambda: draw.uniform(-1, 1) * 10 ** draw.randint(-300, 300),
        lambda: "".join(chr(draw.choice([draw.randint(0, 127), draw.randint(160, 0xD7FF), 0x1F600])) for _ in range(9)),
    ]
    if depth < 4:
        kinds.append(lambda: [random_json(draw, depth + 1) for _ in range(draw.randint(0, 3))])
        kinds.append(lambda: {f'k{i} \\"': random_json(draw, depth + 1) for i in range(draw.randint(0, 3))})
    return draw.choice(kinds)()


def test_a_thousand_requests_with_unknown_fields_arrive_as_they_were_sent(three: World) -> None:
    draw = random.Random(17)
    for _ in range(1000):
        api = draw.choice(list(APIS))
        fields = {f"x_{i}": random_json(draw) for i in range(draw.randint(0, 6))}
        sent = {"model": draw.choice(["ir3de", "law"]), **APIS[api], **fields, "stream": draw.random() < 0.5}
        sent = {key: sent[key] for key in draw.sample(list(sent), len(sent)) if sent[key] is not None}
        asked = {**sent, "ir3de": {"top_n": 1}} if draw.random() < 0.2 else sent
        indent, ascii_only = draw.choice([None, 2]), draw.random() < 0.5
        text = json.dumps(asked, indent=indent, ensure_ascii=ascii_only)
        answered = three.send("POST", f"/v1/{api}", text.encode())
        received = three.last("law")
        assert received.json == {**sent, "model": "served-law"}, text
        expected = answer(f"/v1/{api}", received.json)
        if asked is sent:
            assert answered.body == expected, text
        else:
            assert answered.body != expected, "the route is in it"


def test_what_no_float_holds_is_refused_and_what_it_would_round_arrives_as_it_was_written(three: World) -> None:
    start = b'{"model":"law","messages":[{"role":"user","content":"a"}],'
    for number in (b"1e400", b"-1e999", b"NaN", b"Infinity"):
        for field in (b'"temperature":%s}', b'"x":{"deep":[%s]}}'):
            answered = three.send("POST", "/v1/chat/completions", start + field % number)
            assert (answered.status, answered.code) == (400, "invalid_json")
    kept = b'"x":0.10000000000000000555111512312578,"y":1000000000000000000000000000000,"z":1.0E+2}'
    assert three.send("POST", "/v1/chat/completions", start + kept).status == 200
    assert three.last("law").body.endswith(kept)


@pytest.mark.parametrize("text", ["\x1b[31mcourt", "court\x0c", "court\x08judge", "court\u2028"])
def test_control_characters_pass(three: World, text: str) -> None:
    messages = [{"role": "user", "content": text}]
    answered = three.ask(messages=messages)
    assert answered.status == 200
    assert three.last(str(answered.expert)).json["messages"] == messages


def test_half_a_character_passes_as_it_was_written(three: World) -> None:
    body = b'{"model":"ir3de","messages":[{"role":"user","content":"the court \\ud83d and a judge"}]}'
    assert three.send("POST", "/v1/chat/completions", body).status == 200
    assert b"\\ud83d" in three.last("law").body


def test_a_refusal_of_the_request_by_the_server_comes_back_as_it_is() -> None:
    async def refuse(_: web.Request, __: Received) -> web.StreamResponse:
        return web.Response(status=422, text='{"error": {"message": "no"} }', headers={"x-why": "y"})

    with world(responds={"law": refuse}) as made:
        answered = made.ask()
        assert (answered.status, answered.body) == (422, b'{"error": {"message": "no"} }')
        assert answered.headers["x-why"] == "y"
        assert len(made.behind["law"].received) == 1


async def squeeze(_: web.Request, received: Received) -> web.StreamResponse:
    """A server that compresses where that is allowed."""
    response = web.Response(body=answer("/v1/chat/completions", received.json), content_type="application/json")
    if "gzip" in received.headers.get("accept-encoding", ""):
        response.enable_compression(web.ContentCoding.gzip)
    return response


def test_a_compressed_answer_stays_compressed(three: World) -> None:
    with world(responds={"law": squeeze}) as made:
        answered = made.ask(headers={"accept_encoding": "gzip"})
        assert answered.headers["content-encoding"] == "gzip"
        assert gzip.decompress(answered.body) == answer("/v1/chat/completions", made.last("law").json)
        answered = made.ask(headers={"accept_encoding": "gzip"}, ir3de={})
        assert answered.json["ir3de"]["expert"] == "law"


def test_a_clients_key_and_cookie_stay_here_and_the_servers_token_goes_to_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with StandIn() as law:
        monkeypatch.setenv(token_variable(law.url), "of-the-server")
        with world({"law": {"endpoint": law.url}}) as made:
            made.behind["law"] = law
            headers = {"authorization": "Bearer mine", "x_api_key": "mine", "cookie": "a=b", "user_agent": "agent/1"}
            made.ask(headers={**headers, "anthropic_version": "2023-06-01"})
            got = made.last("law").headers
            assert got["authorization"] == "Bearer of-the-server"
            assert got["user-agent"] == "agent/1"
            assert got["anthropic-version"] == "2023-06-01"
            assert "cookie" not in got
            assert "mine" not in str(got)
            made.ask("messages", **APIS["messages"], headers=headers)
            assert made.last("law").headers["x-api-key"] == "of-the-server"


def test_a_header_that_is_sent_several_times_arrives_whole(three: World) -> None:
    body = json.dumps({"model": "ir3de", **APIS["messages"]}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", three.port, timeout=10)
    connection.putrequest("POST", "/v1/messages")
    for name, value in (("anthropic-beta", "one"), ("anthropic-beta", "two"), ("content-length", str(len(body)))):
        connection.putheader(name, value)
    connection.endheaders(body)
    assert connection.getresponse().status == 200
    assert three.last("law").headers["anthropic-beta"] == "one, two"
    connection.close()


# The route.


def test_the_route_is_in_the_answer_where_it_is_asked_for(three: World) -> None:
    for api, fields in APIS.items():
        answered = three.ask(api, **fields, ir3de={})
        assert "ir3de" not in three.last("law").json
        details = answered.json.pop("ir3de")
        assert details["expert"] == "law"
        assert details["ranking"][0]["expert"] == "law"
        assert {**answered.json, "ir3de": 0} == {**json.loads(answer(f"/v1/{api}", three.last("law").json)), "ir3de": 0}
    answered = three.ask(stream=True, ir3de={})
    first = json.loads(answered.body.split(b"\n\n")[0].removeprefix(b"data: "))
    assert first["ir3de"]["expert"] == "law"
    assert answered.body.count(b'"ir3de"') == 1


@pytest.mark.parametrize("kind", ["text/plain", "text/html", "application/json"])
def test_the_route_is_put_into_nothing_but_an_object(kind: str) -> None:
    said = "[{}]" if kind.endswith("json") else "<p>Bad request {x}: try again"

    async def refuse(_: web.Request, __: Received) -> web.StreamResponse:
        return web.Response(status=400, text=said, content_type=kind)

    with world(responds={"law": refuse}) as made:
        assert made.ask(ir3de={}).body.decode() == said


def test_the_route_is_put_into_the_first_event_that_is_an_object() -> None:
    before = b": PROCESSING {x}\n\nevent: {y}\ndata: [1, {}]\n\n"

    async def chatty(request: web.Request, _: Received) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(before)
        await response.write(b'event: a\ndata: {"b": 1}\n\ndata: [DONE]\n\n')
        return response

    with world(responds={"law": chatty}) as made:
        answered = made.ask(ir3de={}, stream=True).body
        assert answered.startswith(before + b'event: a\ndata: {"ir3de":{')
        assert answered.count(b'"ir3de"') == 1


def test_details_can_be_set_for_every_answer() -> None:
    with world(settings=Settings(details=True), responds={"law": squeeze}) as made:
        assert made.ask().json["ir3de"]["expert"] == "law"
        assert made.ask(headers={"accept_encoding": "gzip"}).json["ir3de"]["expert"] == "law"


def test_an_expert_can_be_asked_by_name_whatever_is_said(three: World) -> None:
    answered = three.ask(model="math", messages=[{"role": "user", "content": None, "x": 1}])
    assert answered.expert == "math"
    assert three.ask(model="gpt-4").code == "model_not_found"
    said = three.ask(model="Wäsche 🧺\x1b").json["error"]["message"]
    assert said.startswith("There is no model 'Wäsche 🧺\\x1b' that answers; there are"), "as it is written"
    assert three.ask("messages", **{**APIS["messages"], "model": "gpt-4"}).json["error"]["type"] == "not_found_error"


def test_the_spec_adds_where_the_request_is_silent() -> None:
    spec = {"system_prompt": "be brief", "generation": {"max_new_tokens": 5, "temperature": 0.5}}
    with world({"law": spec}) as made:
        made.ask()
        got = made.last("law").json
        assert got["messages"] == [{"role": "system", "content": "be brief"}, *LAW]
        assert (got["max_tokens"], got["temperature"]) == (5, 0.5)
        own = [{"role": "system", "content": "be long"}, *LAW]
        made.ask(messages=own, max_completion_tokens=9, temperature=0)
        got = made.last("law").json
        assert (got["messages"], got["temperature"], got.get("max_tokens")) == (own, 0, None)
        made.ask("messages", **APIS["messages"])
        assert made.last("law").json["system"] == "be brief"
        made.ask("responses", **APIS["responses"])
        assert made.last("law").json["instructions"] == "be brief"
        assert made.last("law").json["max_output_tokens"] == 5


def test_what_the_spec_adds_has_the_names_that_each_api_knows() -> None:
    generation = {"num_return_sequences": 2, "stop_strings": "END", "max_new_tokens": 5}
    with world({"law": {"generation": generation}}) as made:
        added = {}
        for api, fields in APIS.items():
            made.ask(api, **{**fields, "max_tokens": None})
            added[api] = {key: made.last("law").json[key] for key in made.last("law").json.keys() - {"model", *fields}}
    assert added["chat/completions"] == added["completions"] == {"n": 2, "stop": "END", "max_tokens": 5}
    assert added["responses"] == {"max_output_tokens": 5}, "which has neither"
    assert {**added["messages"], "max_tokens": 5} == {"stop_sequences": ["END"], "max_tokens": 5}


def test_routing_options_count_and_wrong_ones_are_refused(three: World) -> None:
    assert three.ask(ir3de={"experts": ["code", "math"]}).expert in ("code", "math")
    assert "tokens" in three.ask(ir3de={"explain": True}).json["ir3de"]
    answered = three.ask(ir3de={"min_score": 1})
    assert (answered.status, answered.json["ir3de"]["ranking"][0]["expert"]) == (422, "law")
    assert three.ask(ir3de={"min_score": 1, "fallback_expert": "code"}).expert == "code"
    for options in (
        {"experts": ["art"]},
        {"experts": "law"},
        {"experts": [[1]]},
        {"variant": "best"},
        {"num_votes": 10**30},
        {"min_score": "high"},
        {"stickiness": -1},
        {"\ud800": 1},
        {"route_on": "\ud800"},
        ["explain"],
    ):
        assert three.ask(ir3de=options).status == 400, options


def test_what_an_expert_that_only_routes_would_answer_is_422_with_the_route() -> None:
    with world(names=("code", "math")) as made:
        answered = made.ask()
        assert (answered.status, answered.code) == (422, "no_answer")
        assert answered.json["ir3de"]["expert"] == "law"
        assert made.ask(messages=CODE).expert == "code"


def test_a_request_can_ask_for_its_route_alone() -> None:
    with world(names=("code", "math")) as made:
        for api, fields in APIS.items():
            answered = made.ask(api, **fields, stream=True, ir3de={"generate": False, "top_n": 2})
            assert answered.status == 200
            assert answered.json["object"] == "ir3de.route"
            assert answered.json["ir3de"]["expert"] == "law", "who only routes"
            assert len(answered.json["ir3de"]["ranking"]) == 2
        nobody = made.ask(ir3de={"generate": False, "min_score": 1}).json["ir3de"]
        assert (nobody["expert"], nobody["fallback"]) == (None, True)
        assert made.ask(ir3de={"generate": "no"}).code == "invalid_value"
        assert not any(server.received for server in made.behind.values())
        assert made.ask(messages=CODE, ir3de={"generate": True}).expert == "code"
        assert 'outcome="routed"} 2.0' in made.send("GET", "/metrics").body.decode()


def test_the_name_of_an_expert_is_a_header_whatever_it_is(three: World) -> None:
    name = "юрист, 100% ☂"
    spec = {"name": name, "endpoint": three.behind["law"].url, "domains": ["law"]}
    model = tiny.router()
    model.config.set_experts([spec, {"name": "code"}, {"name": "math"}], list(tiny.DOMAINS))
    with world() as made:
        made.gateway.serving = served(IR3DERoutingPipeline(model, device="cpu"))
        answered = made.ask(ir3de={})
        assert answered.status == 200
        assert unquote(str(answered.expert)) == name
        assert str(answered.expert).isascii()
        assert answered.json["ir3de"]["expert"] == name
        assert made.ask(model=name).expert == answered.expert


# Other addresses.


def test_models_are_the_router_and_its_experts(three: World) -> None:
    answered = three.send("GET", "/v1/models")
    assert [model["id"] for model in answered.json["data"]] == ["ir3de", "code", "law", "math"]
    assert three.send("GET", "/v1/models/law").json["object"] == "model"
    assert three.send("GET", "/v1/models/art").status == 404
    spec = {"name": "org/law", "endpoint": three.behind["law"].url, "domains": ["law"]}
    model = tiny.router()
    model.config.set_experts([spec, {"name": "code"}, {"name": "math"}], list(tiny.DOMAINS))
    with world() as made:
        made.gateway.serving = served(IR3DERoutingPipeline(model, device="cpu"))
        for name in ("org/law", "org%2Flaw"):
            assert made.send("GET", f"/v1/models/{name}").json["id"] == "org/law"


def test_health_ready_and_metrics(three: World) -> None:
    three.ask()
    assert three.send("GET", "/health").json == {"status": "alive"}
    assert three.send("GET", "/ready").json["experts"] == ["code", "law", "math"]
    text = three.send("GET", "/metrics").body.decode()
    assert 'ir3de_requests_total{api="chat/completions",expert="law",outcome="answered"}' in text
    assert 'ir3de_tokens_total{expert="law",kind="prompt"}' in text
    assert "ir3de_requests_inside 0.0" in text


def test_what_is_not_routed_is_a_404_or_goes_to_the_default_expert(three: World) -> None:
    for method, path, status in (("GET", "/v1/chat/completions", 405), ("POST", "/v1/embeddings", 404)):
        answered = three.send(method, path, b"{}")
        assert answered.status == status
        assert "message" in answered.json["error"]
    with world(settings=Settings(default_expert="code")) as made:
        answered = made.send("POST", "/v1/embeddings?a=1", {"model": "ir3de", "input": ["a"]})
        assert answered.json["path"] == "/v1/embeddings"
        received = made.last("code")
        assert received.path == "/v1/embeddings?a=1"
        assert received.json == {"model": "served-code", "input": ["a"]}


@pytest.fixture(scope="module")
def other() -> Iterator[World]:
    """A gateway with a default expert, whose server tells what it got."""

    async def tell(request: web.Request, received: Received) -> web.StreamResponse:
        if "missing" in received.path:
            return web.json_response({"error": {"message": "No such file"}}, status=404)
        if "audio" in received.path:
            response = web.StreamResponse(headers={"content-type": "audio/mpeg", "content-length": "10"})
            await response.prepare(request)
            await response.write(b"first")
            await asyncio.sleep(0.5)
            await response.write(b"later")
            return response
        return web.json_response({"raw": request.raw_path, "headers": received.headers})

    with pytest.MonkeyPatch.context() as patch, StandIn(tell) as code:
        patch.setenv(token_variable(code.url), "of-the-server")
        with world({"code": {"endpoint": code.url}}, settings=Settings(default_expert="code")) as made:
            yield made


def test_what_a_server_says_of_an_address_comes_back(other: World) -> None:
    answered = other.send("GET", "/v1/files/missing")
    assert (answered.status, answered.json) == (404, {"error": {"message": "No such file"}})


@pytest.mark.parametrize("path", ["a%23b", "a%3Fb", "a%20b", "a%2Fb", "%C3%A9", "a..b", "a?b=%26&c=+", "a%252e"])
def test_an_address_arrives_as_it_was_written(other: World, path: str) -> None:
    assert other.send("GET", f"/v1/files/{path}").json["raw"] == f"/v1/files/{path}"


@pytest.mark.parametrize("path", ["../x", "a/../../x", "..%2Fx", "%2e%2e/x", "./x"])
def test_an_address_does_not_lead_out(other: World, path: str) -> None:
    assert other.send("GET", f"/v1/files/{path}").status == 404


def test_what_is_no_json_goes_on_as_it_comes(other: World) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", other.port, timeout=10)
    began = time.perf_counter()
    connection.request("POST", "/v1/audio/speech", b"{}", {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.getheader("content-length") == "10"
    assert response.read(5) == b"first"
    assert time.perf_counter() - began < 0.4
    assert response.read() == b"later"
    connection.close()


def test_tokens_are_counted_in_the_form_of_the_api(three: World, other: World) -> None:
    asked = {"model": "ir3de", "messages": LAW}
    told = other.send("POST", "/v1/messages/count_tokens", asked, x_api_key="mine").json["headers"]
    assert told["x-api-key"] == "of-the-server"
    assert "mine" not in str(told)
    refused = three.send("POST", "/v1/messages/count_tokens", asked)
    assert (refused.status, refused.json["type"], refused.json["error"]["type"]) == (404, "error", "not_found_error")


# Bad input.


HOSTILE: dict[str, Any] = {
    "no JSON": b"{broken",
    "no text": b"\xff\xfe",
    "empty": b"",
    "a list": b"[]",
    "a number": b"12",
    "more than one": b"{}{}",
    "a comma too many": b'{"model":"ir3de",}',
    "no comma": b'{"model":"ir3de" "a":1}',
    "no name": b"{1:2}",
    "a field twice": b'{"model":"ir3de","model":"law","messages":[{"role":"user","content":"a"}]}',
    "deep": b"[" * 900_000,
    "deep in a field": b'{"model":"ir3de","messages":' + b"[" * 900_000,
    "a raw control character": b'{"model":"ir3de","messages":[{"role":"user","content":"a\x00"}]}',
    "a long number": b'{"model":"ir3de","x":' + b"9" * 100_000 + b"}",
    "no messages": {"messages": []},
    "messages that are none": {"messages": "court", "model": "ir3de"},
    "messages that are none for an expert by name": {"messages": "court", "model": "law"},
    "an object of messages": {"messages": LAW[0], "model": "law"},
    "messages in messages": {"messages": [[LAW]]},
    "nothing but space": {"messages": [{"role": "user", "content": "  \n"}]},
    "a number as content": {"messages": [{"role": "user", "content": 1}]},
    "many messages": {"messages": LAW * 2001},
    "many tools": {"tools": [{"type": "function"}] * 10_000},
    "a model that is none": {"model": {"a": 1}},
    "routing options that are none": {"ir3de": 7},
}


@pytest.mark.parametrize("request_", HOSTILE.values(), ids=HOSTILE)
def test_hostile_requests_are_refused_with_a_clear_status(three: World, request_: Any) -> None:
    before = sum(len(server.received) for server in three.behind.values())
    if isinstance(request_, bytes):
        answered = three.send("POST", "/v1/chat/completions", request_)
    else:
        answered = three.ask(**request_)
    assert answered.status == 400
    assert set(answered.json["error"]) == {"message", "type", "param", "code"}
    assert answered.json["error"]["type"] == "invalid_request_error"
    assert before == sum(len(server.received) for server in three.behind.values())
    assert three.ask().status == 200


def test_requests_of_every_wrong_kind_get_an_answer_or_a_documented_refusal(
    expert_specs: dict[str, dict[str, Any]],
) -> None:
    """A few of those that `scripts/bench/fuzz.py` sends by the thousand, to servers and to an expert here."""
    fuzz = Fuzz(seed=17)
    with world({"math": expert_specs["math"]}, names=("code", "law")) as made:
        seen = Counter[int]()
        for _ in range(200):
            api, data, headers = fuzz.request()
            answered = made.send("POST", f"/v1/{api}", data, **headers)
            assert answered.status in STATUSES, (api, data, headers, answered.body)
            seen[answered.status] += 1
        assert seen[200] > 20
        assert seen[400] > 20


def test_a_number_that_is_too_long_is_refused_in_words_of_our_own(three: World) -> None:
    message = three.send("POST", "/v1/chat/completions", HOSTILE["a long number"]).json["error"]["message"]
    assert "too many digits" in message
    assert "sys." not in message


def test_a_large_body_is_refused_before_it_is_read(three: World) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", three.port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("content-length", str(9 << 20))
    connection.endheaders()
    assert connection.getresponse().status == 413, "although no byte of the body was sent"
    connection.close()
    chunks = (b"x" * 65536 for _ in range(200))
    connection = http.client.HTTPConnection("127.0.0.1", three.port, timeout=10)
    try:
        connection.request("POST", "/v1/responses", chunks, {"transfer-encoding": "chunked"}, encode_chunked=True)
    except (BrokenPipeError, ConnectionResetError):
        return  # closed while it was sent
    assert connection.getresponse().status == 413


def test_a_body_keeps_the_text_of_what_is_not_changed() -> None:
    text = ' { "a" : 1.50 ,\n"model":"x", "b":[ 1,2 ], "ir3de": {"a": {}} } '
    body = Body(text.encode())
    assert body.fields == {"a": 1.5, "model": "x", "b": [1, 2], "ir3de": {"a": {}}}
    changed = body.with_changes({"model": '"y"', "ir3de": None, "c": "3"})
    assert changed == b'{"a" : 1.50,"model":"y","b":[ 1,2 ],"c":3}'
    assert Body(b"{}").with_changes({"ir3de": None}) == b"{}"
    with pytest.raises(GatewayError, match="twice"):
        Body(b'{"a":1,"\\u0061":2}')
