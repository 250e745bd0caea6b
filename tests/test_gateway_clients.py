"""Real clients through the gateway: what they send is understood, and what they get is what the server sent."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
import yaml
from aiohttp import web

from ir3de.scripts.bench.stand_in import USAGE, Received, message, message_events, respond

from .gateway_world import LAW, World, world

LOOK = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}


class Verdict(pydantic.BaseModel):
    """A schema that a client parses an answer with."""

    verdict: str
    years: int


async def with_schemas(request: web.Request, received: Received) -> web.StreamResponse:
    """Answers JSON where the request has a schema, and in words once a tool's result has come."""
    asked = received.json
    if asked.get("response_format", {}).get("type") == "json_schema":
        content = json.dumps({"verdict": "guilty", "years": 3})
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        about = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked["model"]}
        return web.json_response({**about, "choices": [choice]})
    if any(each.get("role") == "tool" for each in asked.get("messages", [])):
        received = received._replace(body=json.dumps({**asked, "tools": None}).encode())
    return await respond(request, received)


@pytest.fixture(scope="module")
def three() -> Iterator[World]:
    """A gateway with three servers."""
    with world(responds=dict.fromkeys(("code", "law", "math"), with_schemas)) as made:
        yield made


@pytest.fixture
def client(three: World) -> openai.OpenAI:
    return openai.OpenAI(base_url=three.url, api_key="none", max_retries=0)


def test_openai_chat_and_stream_with_usage(client: openai.OpenAI) -> None:
    chat: Any = LAW
    answer = client.chat.completions.with_raw_response.create(model="ir3de", messages=chat)
    assert answer.headers["x-ir3de-expert"] == "law"
    parsed = answer.parse()
    assert parsed.choices[0].message.content == "Forty-two — naïve, 4²."
    assert parsed.usage is not None
    assert parsed.usage.model_dump(exclude_none=True) == USAGE
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="ir3de", messages=chat, stream=True, stream_options=options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == parsed.choices[0].message.content
    assert chunks[-1].usage == parsed.usage


def test_openai_loop_of_tools(client: openai.OpenAI, three: World) -> None:
    chat: list[Any] = [*LAW]
    tools: Any = [LOOK]
    asked = client.chat.completions.create(model="ir3de", messages=chat, tools=tools).choices[0]
    assert asked.finish_reason == "tool_calls"
    [call] = asked.message.tool_calls or []
    chat.append(asked.message.model_dump(exclude_none=True))
    chat.append({"role": "tool", "tool_call_id": call.id, "content": "3.14"})
    answer = client.chat.completions.create(model="ir3de", messages=chat, tools=tools).choices[0]
    assert answer.message.content == "Forty-two — naïve, 4²."
    assert three.last("law").json["messages"] == chat
    with client.chat.completions.stream(model="ir3de", messages=[*LAW], tools=tools) as stream:  # type: ignore[list-item]
        final = stream.get_final_completion().choices[0].message
    assert json.loads((final.tool_calls or [])[0].function.arguments) == {"at": "π"}


def test_openai_parses_an_answer_of_a_schema(client: openai.OpenAI, three: World) -> None:
    chat: Any = LAW
    answer = client.chat.completions.parse(model="ir3de", messages=chat, response_format=Verdict)
    assert answer.choices[0].message.parsed == Verdict(verdict="guilty", years=3)
    assert three.last("law").json["response_format"]["json_schema"]["name"] == "Verdict"


def test_openai_responses_whole_and_streamed(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="ir3de", input="the court and a judge")
    assert answer.output_text == "Forty-two."
    with client.responses.stream(model="ir3de", input="the court and a judge") as stream:
        assert [event.type for event in stream][-1] == "response.completed"


def test_openai_asynchronous_clients_at_once(three: World) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=three.url, api_key="none") as client:
            chat: Any = LAW
            asked = [client.chat.completions.create(model="ir3de", messages=chat) for _ in range(30)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert set(asyncio.run(ask())) == {"Forty-two — naïve, 4²."}


def test_anthropic_whole_streamed_and_with_tools(three: World) -> None:
    anthropic = pytest.importorskip("anthropic", reason="the package anthropic is not installed")
    client = anthropic.Anthropic(base_url=three.url.removesuffix("/v1"), api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "ir3de", "max_tokens": 64, "messages": LAW}
    answer = client.messages.create(**asked)
    assert answer.content[0].text == "Forty-two."
    assert answer.usage.output_tokens == message({})["usage"]["output_tokens"]
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == "Forty-two."
        assert stream.get_final_message().stop_reason == "end_turn"
    assert len(message_events({})) > 5
    tool = {"name": "look", "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}}}
    called = client.messages.create(**asked, tools=[tool])
    assert called.content[1].input == {"at": "π"}
    thinking = {"type": "enabled", "budget_tokens": 1024}
    client.messages.create(**{**asked, "max_tokens": 2048}, thinking=thinking)
    assert three.last("law").json["thinking"] == thinking
    with pytest.raises(anthropic.NotFoundError, match="There is no model"):
        client.messages.create(**{**asked, "model": "claude"})


def test_langchain_whole_streamed_and_with_tools(three: World) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="the package langchain-openai is not installed")
    chat = langchain.ChatOpenAI(model="ir3de", base_url=three.url, api_key="none")
    assert chat.invoke("the court and a judge").content == "Forty-two — naïve, 4²."
    assert "".join(chunk.content for chunk in chat.stream("the court and a judge")) == "Forty-two — naïve, 4²."
    called = chat.bind_tools([LOOK]).invoke("the court and a judge")
    assert called.tool_calls[0]["args"] == {"at": "π"}
    assert chat.with_structured_output(Verdict).invoke("the court and a judge") == Verdict(verdict="guilty", years=3)


# The docs.


def test_what_the_docs_show_can_be_read() -> None:
    text = (Path(__file__).parents[1] / "docs" / "gateway.md").read_text(encoding="utf-8")
    blocks = [block.split("\n", 1) for block in text.split("```")[1::2]]
    read = []
    for kind, content in blocks:
        if kind == "yaml":
            read.append(yaml.safe_load(content)["kind"])
        elif kind == "json" and content.startswith('{"name"'):
            from ir3de.gateway.keys import read_keys

            read.append(read_keys(content, "docs")[1].name)
        elif kind == "json":
            from ir3de.specs_ir3de import check_expert

            read.append([check_expert(spec)["name"] for spec in json.loads(content)["experts"]])
        elif kind == "nginx":
            assert content.count("{") == content.count("}")
            assert all(line.rstrip().endswith((";", "{", "}")) for line in content.splitlines() if line.strip())
            read.append("nginx")
    assert read == ["ops", ["code", "law", "medicine"], "nginx", "Deployment"]
