"""The four shapes of a request, as far as they are read: who said what, what is needed, and where defaults go."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, ClassVar

from ir3de.prompts_ir3de import is_image, text_of

from .body import Body
from .errors import GatewayError, anthropic_error, openai_error

Turn = tuple[str, Any]  # a role, "user" among them, and what was said: text, or a list of parts


class Api:
    """One of the shapes; what they share is that of OpenAI's chat completions."""

    path = "chat/completions"
    text_part = "text"  # the type of a part that is text
    conversation = "messages"  # the field that holds it
    length_fields: tuple[str, ...] = ("max_completion_tokens", "max_tokens")
    names: ClassVar[dict[str, str]] = {
        "max_new_tokens": "max_tokens",
        "num_return_sequences": "n",
        "stop_strings": "stop",
    }

    def error(self, error: GatewayError) -> dict[str, Any]:
        """An error in the form that clients of this API read."""
        return openai_error(error)

    def error_event(self, error: GatewayError) -> bytes:
        """The same as the last event of a stream."""
        return f"data: {json.dumps(self.error(error))}\n\n".encode()

    def turns(self, fields: dict[str, Any]) -> Iterator[Turn]:
        """The conversation, as far as it is of the expected kind."""
        for message in _dicts(fields.get("messages")):
            yield str(message.get("role")), message.get("content")

    def wants_json(self, fields: dict[str, Any]) -> bool:
        """Whether the answer must be JSON, perhaps of a schema."""
        return _type_of(fields.get("response_format")) in ("json_object", "json_schema")

    def wants_logprobs(self, fields: dict[str, Any]) -> bool:
        """Whether the answer must come with log probabilities."""
        return bool(fields.get("logprobs")) or bool(fields.get("top_logprobs"))

    def must_call(self, fields: dict[str, Any]) -> bool:
        """Whether the answer must call a tool: any, or one by its name."""
        choice = fields.get("tool_choice")
        kind = choice.get("type") if isinstance(choice, dict) else choice
        return kind not in (None, "auto", "none")

    def without_thoughts(self, fields: dict[str, Any]) -> tuple[Any, int]:
        """The conversation without the parts that only the model that made them can read, and how many these were."""
        return fields.get(self.conversation), 0

    def new_tokens(self, fields: dict[str, Any]) -> int:
        """Tokens of the answer that are asked for; 0 where the request does not say."""
        values = (fields.get(field) for field in self.length_fields)
        return next((value for value in values if isinstance(value, int)), 0)

    def with_system_prompt(self, body: Body, prompt: str) -> dict[str, str | None]:
        """The change that puts a system prompt first, unless the request has one of its own."""
        turns = self.turns(body.fields)
        if next(turns, ("", None))[0] in ("system", "developer"):
            return {}
        message = json.dumps({"role": "system", "content": prompt})
        return {"messages": f"[{message},{body.raw('messages')[1:]}"}

    def with_prompt_folded(self, conversation: Any, prompt: str) -> Any:
        """The conversation with a system prompt at the head of the first message of a user; None if there is none."""
        if isinstance(conversation, str):
            return f"{prompt}\n\n{conversation}"
        for place, message in enumerate(conversation if isinstance(conversation, list) else []):
            if isinstance(message, dict) and message.get("role") == "user":
                content = message.get("content")
                if isinstance(content, list):
                    content = [{"type": self.text_part, "text": prompt}, *content]
                else:
                    content = f"{prompt}\n\n{content}" if content else prompt
                return [*conversation[:place], {**message, "content": content}, *conversation[place + 1 :]]
        return None

    def with_defaults(self, body: Body, generation: dict[str, Any]) -> dict[str, str | None]:
        """The changes that add an expert's generation defaults where the request says nothing."""
        options = {self.names.get(key, key): value for key, value in generation.items()}
        if options.pop("do_sample", True) is False:
            options["temperature"] = 0
        given = body.fields
        if any(given.get(field) is not None for field in self.length_fields):
            options.pop(self.names["max_new_tokens"], None)
        return {key: json.dumps(value) for key, value in options.items() if given.get(key) is None}


class Completions(Api):
    """OpenAI's completions of plain text."""

    path = "completions"
    conversation = "prompt"
    length_fields = ("max_tokens",)

    def turns(self, fields: dict[str, Any]) -> Iterator[Turn]:
        """The prompt as a user's; several are read together, and token ids say nothing here."""
        prompt = fields.get("prompt")
        texts = [prompt] if isinstance(prompt, str) else prompt
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            yield "user", "\n".join(texts)

    def with_system_prompt(self, body: Body, prompt: str) -> dict[str, str | None]:
        """Plain text has none."""
        return {}


class Responses(Api):
    """OpenAI's responses."""

    path = "responses"
    text_part = "input_text"
    conversation = "input"
    length_fields = ("max_output_tokens",)
    names: ClassVar[dict[str, str]] = {"max_new_tokens": "max_output_tokens"}

    def error_event(self, error: GatewayError) -> bytes:
        """An event of the type that these streams have."""
        data = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        return f"event: error\ndata: {json.dumps(data)}\n\n".encode()

    def turns(self, fields: dict[str, Any]) -> Iterator[Turn]:
        """The input, whose items are messages, calls of tools and their results."""
        given = fields.get("input")
        if isinstance(given, str):
            yield "user", given
        for item in _dicts(given):
            kind = item.get("type", "message")
            if kind == "message":
                yield str(item.get("role")), item.get("content")
            else:
                yield ("tool" if str(kind).endswith("_output") else "assistant"), item.get("output")

    def wants_json(self, fields: dict[str, Any]) -> bool:
        """Whether the answer must be JSON, perhaps of a schema."""
        text = fields.get("text")
        return isinstance(text, dict) and _type_of(text.get("format")) in ("json_object", "json_schema")

    def wants_logprobs(self, fields: dict[str, Any]) -> bool:
        """Whether the answer must come with log probabilities."""
        return bool(fields.get("top_logprobs"))

    def without_thoughts(self, fields: dict[str, Any]) -> tuple[Any, int]:
        """The input without the items of reasoning."""
        given = fields.get("input")
        if not isinstance(given, list):
            return given, 0
        kept = [item for item in given if _type_of(item) != "reasoning"]
        return kept, len(given) - len(kept)

    def with_system_prompt(self, body: Body, prompt: str) -> dict[str, str | None]:
        """The change that gives instructions where there are none."""
        return {} if body.fields.get("instructions") is not None else {"instructions": json.dumps(prompt)}


class Messages(Api):
    """Anthropic's messages."""

    path = "messages"
    length_fields = ("max_tokens",)
    names: ClassVar[dict[str, str]] = {"max_new_tokens": "max_tokens", "stop_strings": "stop_sequences"}

    def error(self, error: GatewayError) -> dict[str, Any]:
        """An error in Anthropic's form."""
        return anthropic_error(error)

    def error_event(self, error: GatewayError) -> bytes:
        """An event of the type that these streams have."""
        return f"event: error\ndata: {json.dumps(self.error(error))}\n\n".encode()

    def turns(self, fields: dict[str, Any]) -> Iterator[Turn]:
        """The conversation; a user's message that holds nothing but results of tools is a tool's."""
        for role, content in super().turns(fields):
            parts = list(_dicts(content))
            results = bool(parts) and all(part.get("type") == "tool_result" for part in parts)
            yield ("tool" if results else role), content

    def without_thoughts(self, fields: dict[str, Any]) -> tuple[Any, int]:
        """The messages without blocks of thought, which are signed."""
        dropped = 0
        messages = []
        for message in fields["messages"]:
            content = message.get("content") if isinstance(message, dict) else None
            if not isinstance(content, list):
                messages.append(message)
                continue
            kept = [part for part in content if _type_of(part) not in ("thinking", "redacted_thinking")]
            dropped += len(content) - len(kept)
            messages.append({**message, "content": kept})
        return messages, dropped

    def wants_json(self, fields: dict[str, Any]) -> bool:
        """Whether the answer must be JSON of a schema."""
        return isinstance(fields.get("output_format"), dict)

    def wants_logprobs(self, fields: dict[str, Any]) -> bool:
        """Never: this API has none."""
        return False

    def with_system_prompt(self, body: Body, prompt: str) -> dict[str, str | None]:
        """The change that gives a system prompt where there is none."""
        return {} if body.fields.get("system") is not None else {"system": json.dumps(prompt)}


CHAT, COMPLETIONS, RESPONSES, MESSAGES = Api(), Completions(), Responses(), Messages()


def has_images(turns: Iterable[Turn]) -> bool:
    """Whether there is something to see in a conversation, or in what a tool of it gave."""
    parts = [part for _, content in turns for part in _dicts(content)]
    within = (inner for part in parts if _type_of(part) == "tool_result" for inner in _dicts(part.get("content")))
    return any(map(is_image, chain(parts, within)))


def characters(turns: Iterable[Turn], body: Body) -> int:
    """The size of a conversation and of its tools as text, without its images."""
    size = sum(len(text_of(content)) for _, content in turns)
    return size + (len(body.raw("tools")) if body.fields.get("tools") else 0)


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _type_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else None
