"""Real clients through the gateway: what they send is understood, and what they get is what the server sent."""

import asyncio
import json
import os
import shutil
import subprocess
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


def test_litellm_as_a_client(three: World) -> None:
    litellm = pytest.importorskip("litellm", reason="the package litellm is not installed")
    to: dict[str, Any] = {"model": "openai/ir3de", "api_base": three.url, "api_key": "none", "num_retries": 0}
    answer = litellm.completion(**to, messages=LAW)
    assert answer.choices[0].message.content == "Forty-two — naïve, 4²."
    assert answer.usage.total_tokens == USAGE["total_tokens"]
    parts = list(litellm.completion(**to, messages=LAW, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == answer.choices[0].message.content
    called = litellm.completion(**to, messages=LAW, tools=[LOOK]).choices[0].message
    assert json.loads(called.tool_calls[0].function.arguments) == {"at": "π"}
    parsed = litellm.completion(**to, messages=LAW, response_format=Verdict).choices[0].message.content
    assert Verdict.model_validate_json(parsed) == Verdict(verdict="guilty", years=3)


# Clients that have folders of their own: `make clients` makes them.


CLIENTS = Path(os.environ.get("IR3DE_CLIENTS", Path(__file__).parents[1] / ".clients"))


def run_client(command: list[str], found: Path, **options: Any) -> str:
    """What a client says, which is skipped where it is not installed."""
    if not found.exists() or shutil.which(command[0]) is None:
        pytest.skip(f"{found.name} is not installed: `make clients`, or name a folder in IR3DE_CLIENTS")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(("script", "package"), [("openai.mjs", "openai"), ("ai.mjs", "ai")])
def test_clients_for_node(three: World, tmp_path: Path, script: str, package: str) -> None:
    modules = CLIENTS / "node_modules"
    copied = shutil.copy(Path(__file__).parent / "clients" / script, tmp_path)  # Node looks for modules beside it
    (tmp_path / "node_modules").symlink_to(modules)
    run_client(["node", str(copied), three.url], modules / package)


def test_llama_index(three: World) -> None:
    python = CLIENTS / "llama-index" / "bin" / "python"
    script = Path(__file__).parent / "clients" / "llama_index.py"
    run_client([str(python), "-P", str(script), three.url], python)


def test_aider_edits_a_file(tmp_path: Path) -> None:
    """An agent that edits: the model's answer, as a stream, holds the edit, which aider then makes."""
    edit = "```\nhello.py\n<<<<<<< SEARCH\nprint('hi')\n=======\nprint('hello court')\n>>>>>>> REPLACE\n```\n"

    async def answer_with_edit(request: web.Request, received: Received) -> web.StreamResponse:
        asked = received.json
        if "hello.py" not in received.body.decode():
            return await respond(request, received)
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        about = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": asked["model"]}
        for delta, finish in (*(({"content": part}, None) for part in edit.splitlines(True)), ({}, "stop")):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            await stream.write(b"data: " + json.dumps({**about, "choices": [choice]}).encode() + b"\n\n")
        await stream.write(b"data: [DONE]\n\n")
        return stream

    aider = CLIENTS / "aider" / "bin" / "aider"
    file = tmp_path / "hello.py"
    file.write_text("print('hi')\n", encoding="utf-8")
    with world(responds=dict.fromkeys(("code", "law", "math"), answer_with_edit)) as made:
        env = {**os.environ, "OPENAI_API_BASE": made.url, "OPENAI_API_KEY": "none", "HOME": str(tmp_path)}
        env |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        quiet = ["--yes-always", "--no-git", "--no-check-update", "--no-show-model-warnings", "--analytics-disable"]
        asked = ["--model", "openai/ir3de", "--edit-format", "diff", "--message", "say hello to the court", "hello.py"]
        run_client([str(aider), *quiet, *asked], aider, cwd=tmp_path, env=env)
        assert file.read_text(encoding="utf-8") == "print('hello court')\n"
        asked_of = [received.json for server in made.behind.values() for received in server.received]
        assert any(each.get("stream") for each in asked_of)


def test_opencode_edits_a_file_with_its_tool(tmp_path: Path) -> None:
    """An agent of tools: it is asked to write, calls the tool that the answer names, and goes on from the result."""
    file = tmp_path / "hello.py"
    file.write_text("print('hi')\n", encoding="utf-8")
    edit = {"filePath": str(file), "content": "print('hello court')\n"}

    async def answer_with_call(request: web.Request, received: Received) -> web.StreamResponse:
        asked = received.json
        names = [tool["function"]["name"] for tool in asked.get("tools") or ()]
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        about = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": asked["model"]}
        delta: dict[str, Any] = {"role": "assistant", "content": "Done."}
        if "write" in names and asked["messages"][-1]["role"] == "user":
            called = {"name": "write", "arguments": json.dumps(edit)}
            delta = {
                "role": "assistant",
                "tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": called}],
            }
        last = "tool_calls" if "tool_calls" in delta else "stop"
        for each, finish in ((delta, None), ({}, last)):
            choice = {"index": 0, "delta": each, "finish_reason": finish}
            await stream.write(b"data: " + json.dumps({**about, "choices": [choice]}).encode() + b"\n\n")
        await stream.write(b"data: [DONE]\n\n")
        return stream

    opencode = CLIENTS / "node_modules" / ".bin" / "opencode"
    with world(responds=dict.fromkeys(("code", "law", "math"), answer_with_call)) as made:
        options = {"baseURL": made.url, "apiKey": "none"}
        provider = {"npm": "@ai-sdk/openai-compatible", "options": options, "models": {"ir3de": {"name": "ir3de"}}}
        config = {"provider": {"gateway": provider}, "autoupdate": False, "share": "disabled", "permission": "allow"}
        (tmp_path / "opencode.json").write_text(json.dumps(config), encoding="utf-8")
        env = {**os.environ, "HOME": str(tmp_path), "PWD": str(tmp_path), "OPENCODE_DISABLE_MODELS_FETCH": "1"}
        env |= {f"XDG_{kind}_HOME": str(tmp_path / kind.lower()) for kind in ("CONFIG", "DATA", "CACHE", "STATE")}
        asked = ["run", "--model", "gateway/ir3de", "say hello to the court"]
        run_client([str(opencode), *asked], opencode, cwd=tmp_path, env=env)
        assert file.read_text(encoding="utf-8") == edit["content"]
        turns = [received.json for server in made.behind.values() for received in server.received]
        assert any(each["messages"][-1]["role"] == "tool" for each in turns), "it goes on from the result"


# Open WebUI's requests, as it sends them.


def test_what_open_webui_asks_of_a_server(three: World) -> None:
    """The list of models, a chat with its fields, and the tasks that it sets beside: a title, tags."""
    listed = three.send("GET", "/v1/models").json
    assert listed["object"] == "list"
    assert all({"id", "object", "owned_by"} <= model.keys() for model in listed["data"])
    headers = {"x_openwebui_user_name": "ann", "x_openwebui_chat_id": "c1", "accept": "text/event-stream"}
    answered = three.ask(stream=True, stream_options={"include_usage": True}, headers=headers)
    assert answered.body.endswith(b"data: [DONE]\n\n")
    assert b'"usage"' in answered.body
    assert "x-openwebui-user-name" not in three.last("law").headers, "who asks is nobody's business"
    task = "### Task:\nGenerate 1-3 broad tags for the chat.\n### Chat History:\n<chat_history>\nUSER: the court"
    for more in ({"stream": False}, {"stream": False, "max_completion_tokens": 1000}, {"stream": True}):
        answered = three.ask(messages=[{"role": "user", "content": f"{task} and a judge\n</chat_history>"}], **more)
        assert answered.status == 200
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts = [{"type": "text", "text": "the court and a judge"}, image]
    assert three.ask(messages=[{"role": "user", "content": parts}]).expert == "law"
    assert three.last("law").json["messages"][0]["content"] == parts


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
