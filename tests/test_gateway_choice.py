"""Who answers: what is read as the person's words, what experts can do, and that an agent stays with its expert."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ir3de.gateway.apis import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from ir3de.gateway.capabilities import Capabilities
from ir3de.gateway.limits import Limits, Timeouts
from ir3de.gateway.requests import Needs, read_ask
from ir3de.gateway.serving import prepare_in_background
from ir3de.gateway.settings import Settings
from ir3de.gateway.words import Words
from ir3de.scripts.bench.stand_in import Received, respond
from ir3de.specs_ir3de import check_expert

from . import tiny
from .gateway_world import CODE, HASTY, LAW, World, world

SAID = [{"type": "text", "text": "the court and a judge"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def three() -> Iterator[World]:
    """A gateway with three servers in good health."""
    with world() as made:
        yield made


# Words.


HARNESSES: dict[str, tuple[str, str]] = {
    "nothing": (" the court and a judge\n", "the court and a judge"),
    "a reminder": (
        "<system-reminder>\nUse the python function in a loop. </system-reminder>the court and a judge",
        "the court and a judge",
    ),
    "an environment with attributes": (
        '<environment_context id="1">\n<cwd>/python/debug</cwd></environment_context>\nthe court\n',
        "the court",
    ),
    "a task and the state of the editor": (
        "<task>\nthe court and a judge\n</task>\n<environment_details>\n# VSCode\ndebug.py\n</environment_details>",
        "the court and a judge",
    ),
    "files": ("<file path='a.py'>\nx < 3 and y > 2\n</file>\n<file>b</file> the court", "the court"),
    "a block within a block": ("<user_info><file>a</file>b</user_info>the court", "the court"),
    "what is never closed": ("<file> the court", "<file> the court"),
    "only closed": ("the court </file>", "the court </file>"),
    "a tag of another name": ("<fileset>the court</fileset>", "<fileset>the court</fileset>"),
    "markup of the person's own": ("why is <b>this</b> bold", "why is <b>this</b> bold"),
    "instructions alone": ("# AGENTS.md instructions for /repo\n\n<INSTRUCTIONS>python</INSTRUCTIONS>", ""),
}


@pytest.mark.parametrize("how", HARNESSES)
def test_a_harness_is_taken_off_the_persons_words(how: str) -> None:
    message, words = HARNESSES[how]
    assert Words().of(message) == words


def test_the_list_can_be_added_to() -> None:
    assert Words().of("<mine>python</mine>the court") == "<mine>python</mine>the court"
    assert Words(["mine"]).of("<mine>python</mine>the court") == "the court"


@pytest.mark.parametrize("part", ["<file>", "<file ", "</file>", "<file></file>", "<file><rules>", "</"])
def test_words_are_found_in_one_pass(part: str) -> None:
    import time

    began = time.perf_counter()
    Words().of(part * 200_000)
    assert time.perf_counter() - began < 2


def test_the_last_words_of_a_person_decide_and_a_tools_result_is_not_theirs(three: World) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    chat: list[Any] = [
        {"role": "system", "content": "the integral of a matrix"},
        *CODE,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "the integral of a matrix"},
    ]
    assert three.ask(messages=chat).expert == "code"
    assert three.ask(messages=[*CODE, {"role": "assistant", "content": "ok"}, *LAW]).expert == "law"
    wrapped = "<system-reminder>debug my python loop in a function</system-reminder>the court and a judge"
    assert three.ask(messages=[{"role": "user", "content": wrapped}]).expert == "law"
    only = [{"role": "user", "content": "<system-reminder> debug my python loop </system-reminder>"}]
    assert three.ask(messages=only).expert == "code", "where there is nothing else, the whole message"


def test_each_api_is_read_for_the_same_words(three: World) -> None:
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "the integral of a matrix"}
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "the court and a judge"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {}}]},
        {"role": "user", "content": [result]},
    ]
    assert three.ask("messages", messages=chat, max_tokens=9).expert == "law"
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "the court and a judge"}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "the integral of a matrix"},
    ]
    assert three.ask("responses", messages=None, input=items).expert == "law"
    assert three.ask("completions", messages=None, prompt=["the court", "and a judge"]).expert == "law"
    answered = three.ask("completions", messages=None, prompt=[1, 2, 3])
    assert (answered.status, answered.code) == (400, "nothing_to_route_on")
    assert three.ask("completions", messages=None, prompt=[1, 2, 3], model="math").expert == "math"


# Agents.


def test_an_agent_is_routed_on_its_first_words_and_a_chat_on_its_last(three: World) -> None:
    turns = [*LAW, {"role": "assistant", "content": "ok"}, *CODE]
    assert three.ask(messages=turns).expert == "code"
    assert three.ask(messages=turns, tools=TOOLS).expert == "law"
    assert three.ask(messages=turns, tools=TOOLS, ir3de={"stickiness": 0}).expert == "code"
    assert three.ask(messages=turns, ir3de={"stickiness": 1}).expert == "law"


@pytest.mark.parametrize(
    ("headers", "fields"),
    [({"x_session_id": "s"}, {}), ({}, {"prompt_cache_key": "s"}), ({}, {"user": "u"}), ({}, {})],
)
def test_an_agent_stays_with_the_expert_that_it_has(headers: dict[str, str], fields: dict[str, Any]) -> None:
    down = False

    async def sometimes(request: web.Request, received: Received) -> web.StreamResponse:
        return web.Response(status=500) if down else await respond(request, received)

    with world(settings=HASTY, responds={"law": sometimes}) as made:
        down = True
        first = made.ask(tools=TOOLS, headers=headers, **fields).expert
        assert first in ("code", "math"), "since law is down"
        down = False
        later = [*LAW, {"role": "assistant", "content": "ok"}, {"role": "user", "content": "go on"}]
        assert made.ask(messages=later, tools=TOOLS, headers=headers, **fields).expert == first
        assert made.ask(messages=later, headers=headers, **fields).expert != first, "a chat has no such tie"
        other = [{"role": "user", "content": "the court of appeal"}]
        if headers or "prompt_cache_key" in fields:
            assert made.ask(messages=other, tools=TOOLS, headers=headers, **fields).expert == first
        else:
            assert made.ask(messages=other, tools=TOOLS, **fields).expert == "law", "another conversation"


def test_thoughts_that_another_model_signed_are_left_out_and_the_client_is_told() -> None:
    down = False

    async def sometimes(request: web.Request, received: Received) -> web.StreamResponse:
        return web.Response(status=500) if down else await respond(request, received)

    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    thought = {"type": "thinking", "thinking": "hm", "signature": "of law"}
    turns: list[Any] = [
        *LAW,
        {"role": "assistant", "content": [thought, {"type": "text", "text": "ok"}]},
        {"role": "user", "content": "go on"},
    ]
    with world(settings=HASTY, responds={"law": sometimes}) as made:
        assert made.ask("messages", max_tokens=9, tools=tools).expert == "law"
        answered = made.ask("messages", max_tokens=9, tools=tools, messages=turns)
        assert answered.expert == "law"
        assert made.last("law").json["messages"] == turns
        assert "x-ir3de-note" not in answered.headers
        down = True
        answered = made.ask("messages", max_tokens=9, tools=tools, messages=turns)
        other = str(answered.expert)
        assert other != "law"
        assert made.last(other).json["messages"][1]["content"] == [{"type": "text", "text": "ok"}]
        assert answered.headers["x-ir3de-note"] == "1 parts that only law can read were left out"


CALLED = b'{"type":"tool_use","id":"t","name":"look","input":{"x": 0.1000, "y":1e2, "z":"\\u00e9"}}'
THOUGHT = b'{"type":"thinking","thinking":"hm","signature":"s"}'
ASSISTANT = b'{"role":"assistant","n":0.10,"content":'
THOUGHTS = {  # the API, and of a turn in its conversation what stays, what goes, and what stays after that
    "beside a call": ("messages", ASSISTANT + b"[", THOUGHT + b",", CALLED + b"]},"),
    "alone": ("messages", b"", ASSISTANT + b"[" + THOUGHT + b"]},", b""),
    "of a chat": (
        "chat/completions",
        ASSISTANT + b'"a"',
        b',"reasoning_details":[{"data":"x"}],"thinking_blocks":[' + THOUGHT + b"]",
        b"},",
    ),
    "in words": ("chat/completions", ASSISTANT + b'"a", "reasoning_content":"hm"},', b"", b""),
    "items": ("responses", b"", b'{"type":"reasoning","encrypted_content":"x"},', ASSISTANT + b'"a"},'),
}


@pytest.mark.parametrize("how", THOUGHTS)
def test_thoughts_go_and_all_else_keeps_its_text(how: str) -> None:
    api, before, thought, after = THOUGHTS[how]
    turns = b'[{"role":"user","content":"the court"},%s{"role":"user","content":"go on"}]}'
    field = b"input" if api == "responses" else b"messages"
    down = False

    async def sometimes(request: web.Request, received: Received) -> web.StreamResponse:
        return web.Response(status=500) if down else await respond(request, received)

    with world(settings=HASTY, responds={"law": sometimes}) as made:
        body = b'{"model":"ir3de","max_tokens":9,"tools":[{"name":"look"}],"%s":' % field
        body += turns % (before + thought + after)
        assert made.send("POST", f"/v1/{api}", body, x_session_id="s").expert == "law"
        down = True
        other = made.send("POST", f"/v1/{api}", body, x_session_id="s").expert
        assert other in ("code", "math")
        assert made.last(other).body.endswith(turns % (before + after))


def test_a_response_goes_on_where_it_is_kept(three: World) -> None:
    made = three.ask("responses", messages=None, input="the court and a judge")
    assert made.expert == "law"
    more = {"messages": None, "input": "debug my python loop", "previous_response_id": made.json["id"]}
    answered = three.ask("responses", **more)
    assert answered.expert == "law"
    assert three.last("law").json["previous_response_id"] == made.json["id"]
    assert three.send("GET", f"/v1/responses/{made.json['id']}").json["path"].endswith(made.json["id"])
    answered = three.ask("responses", **{**more, "previous_response_id": "resp_unknown"})
    assert (answered.status, answered.code) == (400, "previous_response_not_found")
    assert three.send("GET", "/v1/responses/resp_unknown").status == 404


def test_a_response_that_its_server_forgot_is_told_as_it_says() -> None:
    async def forgetful(request: web.Request, received: Received) -> web.StreamResponse:
        if "previous_response_id" in received.json:
            return web.json_response({"error": {"code": "previous_response_not_found"}}, status=404)
        return await respond(request, received)

    with world(settings=HASTY, responds={"law": forgetful}) as made:
        first = made.ask("responses", messages=None, input="the court and a judge").json["id"]
        answered = made.ask("responses", messages=None, input="go on", previous_response_id=first)
        assert (answered.status, answered.code) == (404, "previous_response_not_found")


# Capabilities.


@pytest.mark.parametrize(
    ("need", "capability", "fields"),
    [
        ("tools", "tools", {"tools": TOOLS}),
        ("json", "json", {"response_format": {"type": "json_object"}}),
        ("logprobs", "logprobs", {"logprobs": True}),
        (
            "images",
            "images",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "court"}, {"type": "image_url"}]}]},
        ),
        ("a context of about 1,000 tokens", "context", {"max_tokens": 995}),
    ],
)
def test_a_request_goes_to_an_expert_that_can(need: str, capability: str, fields: dict[str, Any]) -> None:
    cannot: Any = 999 if capability == "context" else False
    can: Any = 1000 if capability == "context" else True
    with world({"law": {capability: cannot}, "code": {capability: cannot}, "math": {capability: can}}) as made:
        assert made.ask().expert == "law"
        answered = made.ask(**fields, ir3de={})
        assert answered.expert == "math"
        assert [entry["expert"] for entry in answered.json["ir3de"]["ranking"]] == ["math"]
        refused = made.ask(**fields, ir3de={"experts": ["law", "code"]})
        assert refused.status == 400
        message = refused.json["error"]["message"]
        assert need in message
        assert "These could: math." in message
        assert refused.code == ("context_length_exceeded" if capability == "context" else "unsupported_value")
        assert made.ask(**fields, model="law").status == 400
        described = {model["id"]: model.get("capabilities") for model in made.send("GET", "/v1/models").json["data"]}
        assert described == {"ir3de": None, "code": {capability: cannot}, "law": {capability: cannot}} | {
            "math": {capability: can}
        }


def test_what_is_unknown_is_tried() -> None:
    needs = Needs(tools=True, images=True, json=True, logprobs=True, tokens=10**9)
    assert Capabilities().missing(needs) == []
    assert Capabilities(tools=False, context=10).missing(Needs(tokens=10)) == []
    assert Capabilities(tools=False, context=10).missing(Needs(tools=True, tokens=11)) == [
        "tools",
        "a context of about 11 tokens",
    ]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 90_000}}
USED = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {"type": "image"}}]}
LONG = "x " * 2000
SAID: dict[str, Any] = {"role": "user", "content": "the court and a judge"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": LONG}}


def result(content: Any) -> dict[str, Any]:
    """A message of Anthropic's with what a tool gave."""
    return in_parts({"type": "tool_result", "tool_use_id": "t1", "content": content})


def in_parts(part: dict[str, Any]) -> dict[str, Any]:
    """A message of one part."""
    return {"role": "user", "content": [part]}


@pytest.mark.parametrize(
    ("api", "fields", "needed"),
    [
        ("messages", {"messages": [SAID, USED, result([IMAGE])]}, {"images"}),
        ("messages", {"messages": [SAID, USED, result("ok")]}, set()),
        (
            "responses",
            {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot"}}]},
            {"images"},
        ),
        ("responses", {"input": [{"type": "function_call_output", "output": [{"type": "input_image"}]}]}, {"images"}),
        ("chat/completions", {"messages": [SAID, {"role": "tool", "content": [{"type": "image_url"}]}]}, {"images"}),
        ("messages", {"output_config": {"format": {"type": "json_schema", "schema": {}}}}, {"json"}),
        ("messages", {"output_format": {"type": "json_schema", "schema": {}}}, {"json"}),
        ("messages", {"output_config": {"effort": "low"}}, set()),
        ("responses", {"input": "court", "include": ["message.output_text.logprobs"]}, {"logprobs"}),
        ("responses", {"input": "court", "include": ["reasoning.encrypted_content"]}, set()),
        ("completions", {"prompt": "court", "logprobs": 0}, {"logprobs"}),
        ("completions", {"prompt": "court", "logprobs": None}, set()),
        ("chat/completions", {"logprobs": False, "top_logprobs": 0}, set()),
    ],
)
def test_what_a_request_needs_is_seen_wherever_it_stands(api: str, fields: dict[str, Any], needed: set[str]) -> None:
    needs = needs_of(api, fields)
    assert {name for name in ("images", "json", "logprobs") if getattr(needs, name)} == needed


def needs_of(api: str, fields: dict[str, Any]) -> Needs:
    """What a request needs, as it is read."""
    apis = {each.path: each for each in (CHAT, COMPLETIONS, RESPONSES, MESSAGES)}
    asked = {"model": "ir3de", "messages": [SAID], **fields}
    return read_ask(apis[api], json.dumps(asked).encode(), {}, Limits(), ["ir3de"], "").needs


@pytest.mark.parametrize(
    ("api", "fields", "least"),
    [
        ("chat/completions", {"messages": [SAID, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}, 1000),
        ("chat/completions", {"messages": [SAID, {"role": "tool", "content": LONG}]}, 1000),
        ("chat/completions", {"messages": [{"role": "user", "content": "法" * 3500}]}, 1750),
        ("chat/completions", {"messages": [{"role": "user", "content": "суд " * 1000}]}, 1300),
        ("chat/completions", {"tools": [{"type": "function", "function": {"name": LONG}}]}, 1000),
        ("messages", {"messages": [SAID, USED, result(LONG)]}, 1000),
        ("messages", {"messages": [SAID, USED, result([{"type": "text", "text": LONG}])]}, 1000),
        ("messages", {"messages": [in_parts({"type": "tool_use", "input": {"url": LONG}})]}, 1000),
        ("messages", {"system": [{"type": "text", "text": LONG}]}, 1000),
        ("messages", {"messages": [in_parts({"type": "document", "source": {"type": "text", "data": LONG}})]}, 1000),
        ("responses", {"input": "court", "instructions": LONG}, 1000),
        ("responses", {"input": [SAID, {"type": "function_call", "name": "look", "arguments": LONG}]}, 1000),
        ("responses", {"input": [SAID, {"type": "custom_tool_call", "name": "look", "input": LONG}]}, 1000),
        ("completions", {"prompt": [LONG, LONG, "court"]}, 1000),
        ("completions", {"prompt": [1] * 1000}, 1000),
        ("completions", {"prompt": [[1] * 1000, [2] * 9]}, 1000),
        ("messages", {"messages": [SAID, USED, result([IMAGE])]}, 5),
    ],
)  # fmt: skip
def test_what_the_window_must_hold_is_counted_wherever_it_stands(api: str, fields: dict[str, Any], least: int) -> None:
    assert least <= needs_of(api, fields).tokens <= 1.2 * least + 5


def test_a_long_text_that_is_no_message_goes_to_the_expert_with_the_window() -> None:
    with world({"law": {"context": 900}, "code": {"context": 900}, "math": {"context": 100_000}}) as made:
        assert made.ask("messages", max_tokens=5).expert == "law"
        assert made.ask("messages", max_tokens=5, system=LONG).expert == "math"


def test_a_spec_says_what_an_expert_can_do_and_nothing_else() -> None:
    spec = {"name": "law", "endpoint": "http://host/v1", "context": 8192, "tools": True, "images": False}
    assert check_expert(spec) == spec
    for key, value in (("context", 0), ("context", 1.5), ("context", True), ("tools", "yes"), ("json", 1)):
        with pytest.raises(ValueError, match=f"`{key}` of expert 'law'"):
            check_expert({**spec, key: value})


def test_an_expert_here_says_what_its_files_show(expert_specs: dict[str, dict[str, Any]]) -> None:
    with world(expert_specs, names=()) as made:
        law = made.gateway.serving.experts["law"]
        assert law.capabilities.context is None
        law.learn()
        assert law.capabilities.context == 512
        assert law.capabilities.tools is False
        answered = made.ask(model="law", tools=TOOLS)
        assert (answered.status, "tools" in answered.json["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        ("chat/completions", {"n": 9}),
        ("chat/completions", {"max_tokens": 20_000}),
        ("chat/completions", {"logprobs": True, "top_logprobs": 25}),
        ("chat/completions", {"messages": [{"role": "user", "content": [*SAID, {"type": "input_audio"}]}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [*SAID, {"type": "file", "file": {}}]}]}),
        ("completions", {"messages": None, "prompt": ["the court", "the judge"]}),
        ("responses", {"messages": None, "input": "the court", "background": True}),
        ("responses", {"messages": None, "input": "the court", "tools": [{"type": "web_search"}]}),
    ],
)
def test_what_no_expert_here_can_is_left_to_servers(
    expert_specs: dict[str, dict[str, Any]], api: str, fields: dict[str, Any]
) -> None:
    with world({"law": expert_specs["law"]}, names=("code", "math")) as made:
        assert made.ask().expert == "law"
        answered = made.ask(api, **fields)
        assert (answered.status, answered.expert in ("code", "math")) == (200, True)
        refused = made.ask(api, **fields, model="law")
        assert (refused.status, refused.code) == (400, "unsupported_value")
        assert refused.json["error"]["param"]
        malformed = made.ask(seed="x")
        assert (malformed.status, malformed.code) == (400, "invalid_value"), "by law, as it would have been asked"


def test_a_call_that_must_come_is_left_to_servers(expert_specs: dict[str, dict[str, Any]]) -> None:
    """Experts on this machine cannot be made to call a tool; a server may."""
    with world({"law": expert_specs["law"]}, names=("code", "math")) as made:
        assert made.ask().expert == "law"
        for choice in ("required", {"type": "function", "function": {"name": "look"}}):
            answered = made.ask(tools=TOOLS, tool_choice=choice)
            assert answered.expert in ("code", "math")
            assert made.last(str(answered.expert)).json["tool_choice"] == choice
        refused = made.ask(model="law", tools=TOOLS, tool_choice="required")
        assert (refused.status, "tool_choice" in refused.json["error"]["message"]) == (400, True)
        assert made.ask("messages", max_tokens=9, tools=TOOLS, tool_choice={"type": "any"}).expert != "law"


def test_a_server_of_a_model_of_the_hub_can_what_its_files_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a folder beside stands for the Hub
    tiny.expert(tmp_path / "org" / "chat", seed=1, chat=True)
    with world({"law": {"model": "org/chat"}, "code": {"model": "org/chat", "context": 99, "tools": True}}) as made:
        prepare_in_background(made.gateway.serving).join()
        can = {name: expert.capabilities.described() for name, expert in made.gateway.serving.experts.items()}
        assert can["law"] == {"context": 512, "tools": False, "images": False}
        assert can["code"] == {"context": 99, "tools": True, "images": False}, "what the spec says stays"
        assert can["math"] == {}, "its name is no Hub id"
        assert made.ask(tools=TOOLS).expert in ("code", "math")


def test_experts_here_can_be_loaded_before_they_are_asked(expert_specs: dict[str, dict[str, Any]]) -> None:
    with world({"law": expert_specs["law"]}, names=("code", "math")) as made:
        pool = made.gateway.serving.router.experts
        prepare_in_background(made.gateway.serving).join()
        assert pool.loaded == []
        prepare_in_background(made.gateway.serving, preload=True).join()
        assert [each["experts"] for each in pool.loaded] == [["law"]]


def test_many_turns_of_an_agent_are_read_in_time(three: World) -> None:
    import time

    turns: list[Any] = [*LAW]
    for index in range(499):
        call = {"id": f"c{index}", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        turns.append({"role": "assistant", "content": None, "tool_calls": [call]})
        turns.append({"role": "tool", "tool_call_id": f"c{index}", "content": "line of a file\n" * 300})
    body = json.dumps({"model": "ir3de", "messages": turns, "tools": TOOLS * 100}).encode()
    assert len(body) > 2_000_000
    began = time.perf_counter()
    answered = three.send("POST", "/v1/chat/completions", body, x_session_id="long")
    assert (answered.status, answered.expert) == (200, "law")
    assert three.last("law").json["messages"] == turns
    assert time.perf_counter() - began < 2


def test_settings_of_time_come_from_the_spec() -> None:
    async def silent(_: web.Request, __: Received) -> web.StreamResponse:
        import asyncio

        await asyncio.sleep(30)
        raise AssertionError

    settings = Settings(timeouts=Timeouts(first_byte=20))
    with world({"law": {"timeout": 0.2}}, settings=settings, responds={"law": silent}) as made:
        assert made.ask().expert in ("code", "math")
