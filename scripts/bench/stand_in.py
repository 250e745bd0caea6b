"""A server that stands in for an expert's: it answers every API at once with all documented fields, in known bytes."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aiohttp import web

Json = dict[str, Any]  # an object of a request or an answer


class Received(NamedTuple):
    """
    A request that came in.

    Args:
        path (`str`): its address.
        body (`bytes`): as it came.
        headers (`dict[str, str]`): with small letters.
    """

    path: str
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Json:
        """The body, read."""
        read: Json = json.loads(self.body)
        return read


Respond = Callable[[web.Request, Received], Awaitable[web.StreamResponse]]

USAGE: Json = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2, "accepted_prediction_tokens": 0},
}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "π"}'}}


def chat(asked: Json) -> Json:
    """An answer of chat completions."""
    message: Json = {"role": "assistant", "content": "Forty-two — naïve, 4\u00b2.", "refusal": None}
    message |= {"annotations": [], "reasoning_content": "Let me think."}
    if asked.get("tools"):
        message |= {"content": None, "tool_calls": [_CALL]}
    finish = "tool_calls" if asked.get("tools") else "stop"
    logprobs = {"content": [{"token": "Forty", "logprob": -0.25, "bytes": [70], "top_logprobs": []}], "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish}
    return {
        "id": "chatcmpl-stand-in",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": asked.get("model"),
        "choices": [choice],
        "usage": USAGE,
        "service_tier": "default",
        "system_fingerprint": "fp_1",
        "x_unknown": {"kept": [1, 2.50, None]},
    }


def chat_chunks(asked: Json) -> list[bytes]:
    """The events of a streamed answer of chat completions."""
    common = {"id": "chatcmpl-stand-in", "object": "chat.completion.chunk", "created": 1_700_000_000}
    common |= {"model": asked.get("model"), "system_fingerprint": "fp_1"}
    deltas: list[Json] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word} for word in ("Forty", "-two", " — ", "naïve", ", 4\u00b2", ".")]
    if asked.get("tools"):
        head = {**_CALL, "index": 0, "function": {"name": "look", "arguments": ""}}
        deltas = [{"role": "assistant", "content": None, "tool_calls": [head]}]
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in ('{"at"', ': "π"}')]
    choices: list[Json] = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls" if asked.get("tools") else "stop"})
    chunks: list[Json] = [{**common, "choices": [choice]} for choice in choices]
    if (asked.get("stream_options") or {}).get("include_usage"):
        chunks.append({**common, "choices": [], "usage": USAGE})
    return [*map(_data, chunks), b"data: [DONE]\n\n"]


def completion(asked: Json) -> Json:
    """An answer of completions."""
    choice = {"text": " forty-two", "index": 0, "logprobs": None, "finish_reason": "length"}
    about = {"id": "cmpl-stand-in", "object": "text_completion", "created": 1_700_000_000, "model": asked.get("model")}
    return {**about, "choices": [choice], "usage": USAGE}


def response(asked: Json) -> Json:
    """An answer of responses."""
    text = {"type": "output_text", "text": "Forty-two.", "annotations": [], "logprobs": []}
    item = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [text]}
    usage: Json = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
    usage |= {"input_tokens_details": {"cached_tokens": 3}, "output_tokens_details": {"reasoning_tokens": 2}}
    return {
        "id": "resp_stand_in",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "metadata": {},
        "model": asked.get("model"),
        "output": [{"type": "reasoning", "id": "rs_1", "summary": []}, item],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": usage,
    }


def response_events(asked: Json) -> list[bytes]:
    """The events of a streamed answer of responses."""
    whole = response(asked)
    delta = {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 1, "content_index": 0}
    events: list[Json] = [
        {"type": "response.created", "response": {**whole, "status": "in_progress", "output": [], "usage": None}},
        {"type": "response.output_item.added", "output_index": 0, "item": whole["output"][0]},
        {"type": "response.output_item.added", "output_index": 1, "item": {**whole["output"][1], "content": []}},
        {**delta, "type": "response.content_part.added", "part": {**whole["output"][1]["content"][0], "text": ""}},
        *({**delta, "delta": text} for text in ("Forty", "-two", ".")),
        {**delta, "type": "response.output_text.done", "text": "Forty-two."},
        {"type": "response.output_item.done", "output_index": 1, "item": whole["output"][1]},
        {"type": "response.completed", "response": whole},
    ]
    numbered = [{**event, "sequence_number": number} for number, event in enumerate(events)]
    return [b"event: " + str(event["type"]).encode() + b"\n" + _data(event) for event in numbered]


def message(asked: Json) -> Json:
    """An answer of Anthropic's messages."""
    content: list[Json] = [{"type": "text", "text": "Forty-two.", "citations": None}]
    if asked.get("tools"):
        content.append({"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "π"}})
    return {
        "id": "msg_stand_in",
        "type": "message",
        "role": "assistant",
        "model": asked.get("model"),
        "content": content,
        "stop_reason": "tool_use" if asked.get("tools") else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 11, "output_tokens": 7, "cache_read_input_tokens": 3},
    }


def message_events(asked: Json) -> list[bytes]:
    """The events of a streamed answer of messages."""
    whole = message({**asked, "tools": None})
    start = {**whole, "content": [], "stop_reason": None, "usage": {"input_tokens": 11, "output_tokens": 1}}
    events: list[Json] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
            for text in ("Forty", "-two", ".")
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]
    return [b"event: " + str(event["type"]).encode() + b"\n" + _data(event) for event in events]


def _data(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


_WHOLE = {"chat/completions": chat, "completions": completion, "responses": response, "messages": message}
_EVENTS = {"chat/completions": chat_chunks, "responses": response_events, "messages": message_events}


def answer(path: str, asked: Json) -> bytes:
    """The bytes that a request gets."""
    api = path.removeprefix("/v1/")
    if asked.get("stream") and api in _EVENTS:
        return b"".join(_EVENTS[api](asked))
    made = _WHOLE[api](asked) if api in _WHOLE else {"object": "list", "data": [], "path": path}
    return json.dumps(made, ensure_ascii=False, indent=1).encode()


async def respond(request: web.Request, received: Received) -> web.StreamResponse:
    """Answers as a server in good health."""
    asked = received.json if received.body else {}
    api = request.path.removeprefix("/v1/")
    if not (asked.get("stream") and api in _EVENTS):
        return web.Response(body=answer(request.path, asked), content_type="application/json")
    stream = web.StreamResponse(headers={"content-type": "text/event-stream", "x-of-the-server": "1"})
    await stream.prepare(request)
    for event in _EVENTS[api](asked):
        await stream.write(event)
    await stream.write_eof()
    return stream


class StandIn:
    """
    The server, in a thread of its own.

    Args:
        respond (`Callable`): how it answers.
        keep (`bool`): keep what came in.
    """

    def __init__(self, respond: Respond = respond, keep: bool = True) -> None:
        self.respond = respond
        self.received: list[Received] = []
        self.open = 0
        self._keep = keep
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()), daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        """Its address, as a spec's `endpoint`."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> StandIn:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=5)

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, backlog=4096)
        await site.start()
        self.port = runner.addresses[0][1]
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        received = Received(request.path_qs, await request.read(), headers)
        if self._keep:
            self.received.append(received)
        self.open += 1
        try:
            return await self.respond(request, received)
        finally:
            self.open -= 1


async def respond_slowly_where_asked(request: web.Request, received: Received) -> web.StreamResponse:
    """Answers as ever, and to a prompt that begins with `slowly` over two seconds."""
    if b'"slowly' not in received.body:
        return await respond(request, received)
    stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await stream.prepare(request)
    events = chat_chunks(received.json)
    for event in events:
        await stream.write(event)
        await asyncio.sleep(2 / len(events))
    return stream


if __name__ == "__main__":
    server = StandIn(respond_slowly_where_asked, keep=False)
    server.port = int(sys.argv[1])
    with server:
        threading.Event().wait()
