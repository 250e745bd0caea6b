"""Answers of experts on this machine in the shapes of the four APIs, in one piece or as events."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .apis import COMPLETIONS, MESSAGES, RESPONSES, Api
from .generation import Piece, Scored

_PARTS = {"text": "output_text", "reasoning": "reasoning_text"}  # types of the parts of a response, by pieces


class ChatShape:
    """
    One answer of chat completions.

    Args:
        expert (`str`): its name.
        fields (`dict`): of the request.
    """

    def __init__(self, expert: str, fields: dict[str, Any]) -> None:
        self.expert = expert
        self.fields = fields
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.calls: Counter[int] = Counter()  # of each choice
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """The answer in one piece."""
        self._count(pieces)
        last = max(piece.choice for piece in pieces)
        choices = []
        for index in range(last + 1):
            of_choice = [piece for piece in pieces if piece.choice == index]
            choices.append(self._choice(of_choice, index))
        return {**self._common("chat.completion"), "choices": choices, "usage": self.usage()}

    def _choice(self, pieces: list[Piece], index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": joined(pieces, "text"), "refusal": None}
        if reasoning := joined(pieces, "reasoning"):
            message["reasoning_content"] = reasoning
        if calls := [self._call(piece) for piece in pieces if piece.kind == "call"]:
            message["tool_calls"] = calls
            message["content"] = message["content"] or None
        finish = pieces[-1].finish or None
        logprobs = self._logprobs(scored_of(pieces))
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, scored: list[Scored] | None) -> dict[str, Any] | None:
        """What is told of tokens and their log probabilities; None where nobody asks for it."""
        return None if scored is None else {"content": told(scored), "refusal": None}

    def begin(self) -> Iterator[dict[str, Any]]:
        """Events before the first piece."""
        yield self._chunk(0, {"role": "assistant", "content": ""})

    def event(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The events of a piece."""
        if piece.kind == "end":
            self._count([piece])
            yield self._chunk(piece.choice, {}, piece.finish or None)
        elif piece.kind == "call":
            yield self._chunk(piece.choice, {"tool_calls": [{"index": self.calls[piece.choice], **self._call(piece)}]})
            self.calls[piece.choice] += 1
        else:
            key = "content" if piece.kind == "text" else "reasoning_content"
            chunk = self._chunk(piece.choice, {key: piece.text})
            chunk["choices"][0]["logprobs"] = self._logprobs(piece.logprobs)
            yield chunk

    def end(self) -> Iterator[dict[str, Any]]:
        """Events after the last piece."""
        if (self.fields.get("stream_options") or {}).get("include_usage"):
            yield {**self._common("chat.completion.chunk"), "choices": [], "usage": self.usage()}

    def text(self, event: dict[str, Any]) -> bytes:
        """An event as bytes."""
        return f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode()

    last = b"data: [DONE]\n\n"

    def usage(self) -> dict[str, int]:
        """Tokens, as the expert counts them."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }

    def _count(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self.prompt_tokens = max(self.prompt_tokens, piece.prompt_tokens)
            if piece.kind == "end":
                self.completion_tokens += piece.completion_tokens

    def _common(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.expert}

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._common("chat.completion.chunk"), "choices": [choice]}

    def _call(self, piece: Piece) -> dict[str, Any]:
        function = {"name": piece.name, "arguments": piece.text}
        return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


class CompletionShape(ChatShape):
    """One answer of completions; arguments as of [`ChatShape`]."""

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """The answer in one piece."""
        return {**super().whole(pieces), "id": self.id.replace("chatcmpl", "cmpl"), "object": "text_completion"}

    def _choice(self, pieces: list[Piece], index: int) -> dict[str, Any]:
        about = {"index": index, "finish_reason": pieces[-1].finish or None}
        return {"text": joined(pieces, "text"), "logprobs": self._logprobs(scored_of(pieces)), **about}

    def _logprobs(self, scored: list[Scored] | None) -> dict[str, Any] | None:
        """In the older form, a list of each of its columns."""
        if scored is None:
            return None
        return {
            "tokens": [each.token for each in scored],
            "token_logprobs": [each.logprob for each in scored],
            "top_logprobs": [{other.token: other.logprob for other in (*each.others, each)} for each in scored],
            "text_offset": [each.start for each in scored],
        }

    def begin(self) -> Iterator[dict[str, Any]]:
        """Nothing comes before the first piece."""
        yield from ()

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"text": delta.get("content", ""), "index": index, "logprobs": None, "finish_reason": finish}
        return {**self._common("text_completion"), "choices": [choice]}


class MessageShape(ChatShape):
    """One answer of Anthropic's messages; arguments as of [`ChatShape`]."""

    last = b""
    _reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}  # noqa: RUF012

    def __init__(self, expert: str, fields: dict[str, Any]) -> None:
        super().__init__(expert, fields)
        self._open: str | None = None
        self._blocks = 0

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """The answer in one piece."""
        self._count(pieces)
        content: list[dict[str, Any]] = []
        if thinking := joined(pieces, "reasoning"):
            content.append({"type": "thinking", "thinking": thinking, "signature": ""})
        if text := joined(pieces, "text"):
            content.append({"type": "text", "text": text})
        content += [self._use(piece, read=True) for piece in pieces if piece.kind == "call"]
        return {**self._message(), "content": content, **self._stop(pieces[-1])}

    def _stop(self, end: Piece) -> dict[str, Any]:
        reason = "stop_sequence" if end.stop else self._reasons.get(end.finish)
        return {"stop_reason": reason, "stop_sequence": end.stop or None}

    def begin(self) -> Iterator[dict[str, Any]]:
        """The message without its content."""
        yield {"type": "message_start", "message": self._message()}

    def event(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The events of a piece."""
        if piece.kind == "end":
            self._count([piece])
            yield from self._close()
            yield {"type": "message_delta", "delta": self._stop(piece), "usage": self.usage()}
            return
        if piece.kind == "call":
            yield from self._start("call", self._use(piece, read=False))
            delta = {"type": "input_json_delta", "partial_json": piece.text}
        elif piece.kind == "text":
            yield from self._start("text", {"type": "text", "text": ""})
            delta = {"type": "text_delta", "text": piece.text}
        else:
            yield from self._start("reasoning", {"type": "thinking", "thinking": "", "signature": ""})
            delta = {"type": "thinking_delta", "thinking": piece.text}
        yield {"type": "content_block_delta", "index": self._blocks - 1, "delta": delta}

    def end(self) -> Iterator[dict[str, Any]]:
        """The last event."""
        yield {"type": "message_stop"}

    def text(self, event: dict[str, Any]) -> bytes:
        """An event as bytes."""
        return f"event: {event['type']}\n".encode() + super().text(event)

    def usage(self) -> dict[str, int]:
        """Tokens, as the expert counts them."""
        return {"input_tokens": self.prompt_tokens, "output_tokens": self.completion_tokens}

    def _start(self, kind: str, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Begins a block, unless the last one goes on."""
        if kind == self._open and kind != "call":
            return
        yield from self._close()
        self._open = kind
        yield {"type": "content_block_start", "index": self._blocks, "content_block": block}
        self._blocks += 1

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": self._blocks - 1}

    def _message(self) -> dict[str, Any]:
        about = {"id": f"msg_{self.id[9:]}", "type": "message", "role": "assistant", "model": self.expert}
        return {**about, "content": [], "stop_reason": None, "stop_sequence": None, "usage": self.usage()}

    def _use(self, piece: Piece, read: bool) -> dict[str, Any]:
        given = json.loads(piece.text) if read else {}
        return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": piece.name, "input": given}


class ResponseShape(ChatShape):
    """One answer of responses; arguments as of [`ChatShape`]."""

    last = b""

    def __init__(self, expert: str, fields: dict[str, Any]) -> None:
        super().__init__(expert, fields)
        self.id = f"resp_{uuid.uuid4().hex}"
        self._sent = 0
        self._output: list[dict[str, Any]] = []
        self._item: dict[str, Any] | None = None  # that is being made: a message, or a reasoning
        self._kind = ""
        self._text = ""
        self._told: list[dict[str, Any]] = []
        self._finish = ""

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """The answer in one piece."""
        for piece in pieces:
            for _ in self.event(piece):
                pass
        return self._response()

    def begin(self) -> Iterator[dict[str, Any]]:
        """That there is a response."""
        yield self._numbered("response.created", response=self._response())
        yield self._numbered("response.in_progress", response=self._response())

    def event(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The events of a piece."""
        if piece.kind == "call":
            yield from self._close()
            yield from self._called(piece)
        elif piece.kind == "end":
            self._count([piece])
            self._finish = piece.finish or "stop"
            yield from self._close()
        else:
            yield from self._open(piece.kind)
            self._text += piece.text
            about = self._with_logprobs(told(piece.logprobs or []))
            self._told += about.get("logprobs", [])
            yield self._numbered(f"response.{_PARTS[piece.kind]}.delta", **self._place(), delta=piece.text, **about)

    def end(self) -> Iterator[dict[str, Any]]:
        """The complete response."""
        response = self._response()
        yield self._numbered(f"response.{response['status']}", response=response)

    def text(self, event: dict[str, Any]) -> bytes:
        """An event as bytes."""
        return f"event: {event['type']}\n".encode() + super().text(event)

    def usage(self) -> dict[str, Any]:  # type: ignore[override]
        """Tokens, as the expert counts them."""
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def _open(self, kind: str) -> Iterator[dict[str, Any]]:
        """Begins an item, unless the last one goes on."""
        if self._item is not None and self._kind == kind:
            return
        yield from self._close()
        self._kind, self._text, self._told = kind, "", []
        if kind == "text":
            item: dict[str, Any] = {"type": "message", "id": f"msg_{uuid.uuid4().hex}", "role": "assistant"}
        else:
            item = {"type": "reasoning", "id": f"rs_{uuid.uuid4().hex}", "summary": []}
        self._item = {**item, "status": "in_progress", "content": []}
        yield self._numbered("response.output_item.added", output_index=len(self._output), item=self._item)
        yield self._numbered("response.content_part.added", **self._place(), part=self._part())

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._item is not None:
            place, part = self._place(), self._part()
            done = {**self._item, "status": "completed", "content": [part]}
            about = self._with_logprobs(self._told)
            yield self._numbered(f"response.{_PARTS[self._kind]}.done", **place, text=self._text, **about)
            yield self._numbered("response.content_part.done", **place, part=part)
            yield self._numbered("response.output_item.done", output_index=len(self._output), item=done)
            self._output.append(done)
            self._item = None

    def _with_logprobs(self, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        """What is told of log probabilities, which only texts of messages have."""
        return {"logprobs": logprobs} if self._kind == "text" else {}

    def _called(self, piece: Piece) -> Iterator[dict[str, Any]]:
        item = {"type": "function_call", "id": f"fc_{uuid.uuid4().hex}", "name": piece.name, "status": "completed"}
        item |= {"call_id": f"call_{uuid.uuid4().hex[:24]}", "arguments": piece.text}
        place: dict[str, Any] = {"output_index": len(self._output)}
        about = {"item_id": item["id"], **place}
        yield self._numbered("response.output_item.added", **place, item={**item, "arguments": ""})
        yield self._numbered("response.function_call_arguments.delta", **about, delta=piece.text)
        yield self._numbered("response.function_call_arguments.done", **about, arguments=piece.text, name=piece.name)
        yield self._numbered("response.output_item.done", **place, item=item)
        self._output.append(item)

    def _place(self) -> dict[str, Any]:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": len(self._output), "content_index": 0}

    def _part(self) -> dict[str, Any]:
        more: dict[str, Any] = {"annotations": []} if self._kind == "text" else {}
        return {"type": _PARTS[self._kind], "text": self._text, **more, **self._with_logprobs(self._told)}

    def _numbered(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._sent += 1
        return {"type": kind, "sequence_number": self._sent - 1, **fields}

    def _response(self) -> dict[str, Any]:
        cut = self._finish == "length"
        status = {"": "in_progress", "length": "incomplete"}.get(self._finish, "completed")
        echoed = {key: self.fields.get(key) for key in ("instructions", "metadata", "max_output_tokens")}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "model": self.expert,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            **echoed,
            "output": list(self._output),
            "parallel_tool_calls": self.fields.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "temperature": self.fields.get("temperature"),
            "tool_choice": self.fields.get("tool_choice") or "auto",
            "tools": self.fields.get("tools") or [],
            "top_p": self.fields.get("top_p"),
            "usage": self.usage() if self._finish else None,
        }


def shape_of(api: Api, expert: str, fields: dict[str, Any]) -> ChatShape:
    """The shape that an answer of an API has."""
    kinds = {COMPLETIONS: CompletionShape, MESSAGES: MessageShape, RESPONSES: ResponseShape}
    return kinds.get(api, ChatShape)(expert, fields)


def joined(pieces: list[Piece], kind: str) -> str:
    """The text of all pieces of a kind."""
    return "".join(piece.text for piece in pieces if piece.kind == kind)


def scored_of(pieces: list[Piece]) -> list[Scored] | None:
    """All tokens with their log probabilities, if they were asked for."""
    given = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return [scored for some in given for scored in some] if given else None


def told(scored: list[Scored]) -> list[dict[str, Any]]:
    """Tokens and their log probabilities in the form of chats and responses."""
    return [{**_told(each), "top_logprobs": list(map(_told, each.others))} for each in scored]


def _told(scored: Scored) -> dict[str, Any]:
    return {"token": scored.token, "logprob": scored.logprob, "bytes": list(scored.token.encode())}
