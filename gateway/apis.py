"""The four shapes of a request, as far as they are read: who said what, what is needed, and where defaults go."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from ir3de.prompts_ir3de import is_image

from .body import Body, elements, joined
from .errors import GatewayError, anthropic_error, openai_error

Turn = tuple[str, Any]  # a role, "user" among them, and what was said: text, or a list of parts

_SIGNED = ("reasoning_details", "thinking_blocks")  # of a message of chats
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,18})')
_LOGPROBS = "message.output_text.logprobs"  # of `include`
# Fields of a conversation that its window holds nothing of, or nothing that is text.
_NAMES = frozenset(("call_id", "file_id", "id", "image_url", "role", "tool_call_id", "tool_use_id", "type", "url"))
_BYTES = frozenset(("data", "encrypted_content", "file_data", "result", "signature"))
_THOUGHTS = frozenset(("reasoning", "reasoning_content", "reasoning_details", "summary", "thinking", "thinking_blocks"))
_NO_TEXT = _NAMES | _BYTES | _THOUGHTS


class Contents(NamedTuple):
    """
    What is in a conversation.

    Args:
        characters (`int`): of its text and of its tools, without images and files.
        tokens (`int`): that these are about, and rather too few; of several prompts the longest counts.
        images (`bool`): whether there is something to see in it, or in what a tool of it gave.
    """

    characters: int
    tokens: int
    images: bool


class Api:
    """One of the shapes; what they share is that of OpenAI's chat completions."""

    path = "chat/completions"
    text_part = "text"  # the type of a part that is text
    conversation = "messages"  # the field that holds it
    kinds: tuple[type, ...] = (list,)  # that this field may be
    instead: tuple[str, ...] = ()  # fields with which it may be missing
    read: tuple[str, ...] = ("messages",)  # the fields that the window must hold, beside tools
    length_fields: tuple[str, ...] = ("max_completion_tokens", "max_tokens")
    names: ClassVar[dict[str, str | None]] = {  # of transformers' options here; None where there is no such field
        "max_new_tokens": "max_tokens",
        "num_return_sequences": "n",
        "stop_strings": "stop",
    }

    def error(self, error: GatewayError) -> dict[str, Any]:
        """An error in the form that clients of this API read."""
        return openai_error(error)

    def error_event(self, error: GatewayError, sent: bytes = b"") -> bytes:
        """The same as the last event of a stream.

        Args:
            error ([`GatewayError`]): that ended it.
            sent (`bytes`): the events before it.
        """
        return f"data: {json.dumps(self.error(error))}\n\n".encode()

    def turns(self, fields: dict[str, Any]) -> Iterator[Turn]:
        """The conversation, as far as it is of the expected kind."""
        for message in _dicts(fields.get("messages")):
            yield str(message.get("role")), message.get("content")

    def contents(self, body: Body) -> Contents:
        """What is in the conversation."""
        characters, size, images = _measured([body.fields.get(name) for name in self.read])
        tools = len(body.raw("tools")) if body.fields.get("tools") else 0
        return Contents(characters + tools, _tokens(characters + tools, size + tools), images)

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

    def without_thoughts(self, body: Body) -> tuple[str, int]:
        """The conversation, as text, without the parts that only the model that made them can read, and how many these
        were. All else keeps the text that it came with.
        """
        given = body.raw(self.conversation)
        if not given.startswith("["):
            return given, 0
        texts = [self._without_thoughts(text) if text.startswith("{") else (text, 0) for text in elements(given)]
        return joined(text for text, _ in texts if text), sum(dropped for _, dropped in texts)

    def _without_thoughts(self, text: str) -> tuple[str, int]:
        """The text of a message without such parts, or nothing if it holds nothing else, and how many these were."""
        message = Body(text.encode())
        signed = [field for field in _SIGNED if message.fields.get(field)]
        return message.with_changes(dict.fromkeys(signed)).decode() if signed else text, len(signed)

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

    def with_prompt_folded(self, given: str, prompt: str) -> str | None:
        """A conversation, as text, with a system prompt at the head of the first message of a user; None if there is
        none.
        """
        if given.startswith('"'):
            return json.dumps(f"{prompt}\n\n{json.loads(given)}")
        texts = elements(given) if given.startswith("[") else []
        for place, text in enumerate(texts):
            message = Body(text.encode() if text.startswith("{") else b"{}")
            if message.fields.get("role") == "user":
                content = self._with_text_first(message, prompt)
                return joined(
                    [*texts[:place], message.with_changes({"content": content}).decode(), *texts[place + 1 :]]
                )
        return None

    def _with_text_first(self, message: Body, prompt: str) -> str:
        """The content of a message, as text, with a prompt at its head."""
        content = message.fields.get("content")
        if isinstance(content, list):
            return joined([json.dumps({"type": self.text_part, "text": prompt}), *elements(message.raw("content"))])
        return json.dumps(f"{prompt}\n\n{content}" if content else prompt)

    def with_defaults(self, body: Body, generation: dict[str, Any]) -> dict[str, str | None]:
        """The changes that add an expert's generation defaults where the request says nothing."""
        options = {self.names.get(key, key): value for key, value in generation.items()}
        if options.pop("do_sample", True) is False:
            options["temperature"] = 0
        given = body.fields
        if any(given.get(field) is not None for field in self.length_fields):
            options.pop(self.names["max_new_tokens"], None)
        return {key: json.dumps(value) for key, value in options.items() if key is not None and given.get(key) is None}


class Completions(Api):
    """OpenAI's completions of plain text."""

    path = "completions"
    conversation = "prompt"
    kinds = (str, list)
    length_fields = ("max_tokens",)

    def turns(self, fields: dict[str, Any]) -> Iterator[Turn]:
        """The prompt as a user's; several are read together, and token ids say nothing here."""
        prompt = fields.get("prompt")
        texts = [prompt] if isinstance(prompt, str) else prompt
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            yield "user", "\n".join(texts)

    def contents(self, body: Body) -> Contents:
        """What is in the prompts, each of which has the window for itself; they may be lists of token ids."""
        given = body.fields.get("prompt")
        prompts = [each for each in given if isinstance(each, (str, list))] if isinstance(given, list) else []
        longest = max(prompts, key=len) if prompts else given
        characters, size, _ = _measured([longest])
        ids = len(longest) if isinstance(longest, list) else 0
        return Contents(sum(map(len, prompts)) if prompts else characters, ids + _tokens(characters, size), False)

    def wants_logprobs(self, fields: dict[str, Any]) -> bool:
        """Whether the answer must come with log probabilities; 0 of others are those of the tokens themselves."""
        asked = fields.get("logprobs")
        return asked is not None and asked is not False

    def with_system_prompt(self, body: Body, prompt: str) -> dict[str, str | None]:
        """Plain text has none."""
        return {}


class Responses(Api):
    """OpenAI's responses."""

    path = "responses"
    text_part = "input_text"
    conversation = "input"
    kinds = (str, list)
    instead = ("previous_response_id", "prompt", "conversation")
    read = ("input", "instructions")
    length_fields = ("max_output_tokens",)
    names: ClassVar[dict[str, str | None]] = {
        "max_new_tokens": "max_output_tokens",
        "num_return_sequences": None,
        "stop_strings": None,
    }

    def error_event(self, error: GatewayError, sent: bytes = b"") -> bytes:
        """An event of the type that these streams have, with the next number."""
        data: dict[str, Any] = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        data["sequence_number"] = max((int(number) + 1 for number in _NUMBER.findall(sent)), default=0)
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
        included = fields.get("include")
        return bool(fields.get("top_logprobs")) or (isinstance(included, list) and _LOGPROBS in included)

    def _without_thoughts(self, text: str) -> tuple[str, int]:
        """Nothing of an item of reasoning."""
        return ("", 1) if Body(text.encode()).fields.get("type") == "reasoning" else (text, 0)

    def with_system_prompt(self, body: Body, prompt: str) -> dict[str, str | None]:
        """The change that gives instructions where there are none."""
        return {} if body.fields.get("instructions") is not None else {"instructions": json.dumps(prompt)}


class Messages(Api):
    """Anthropic's messages."""

    path = "messages"
    read = ("messages", "system")
    length_fields = ("max_tokens",)
    names: ClassVar[dict[str, str | None]] = {
        "max_new_tokens": "max_tokens",
        "num_return_sequences": None,
        "stop_strings": "stop_sequences",
    }

    def error(self, error: GatewayError) -> dict[str, Any]:
        """An error in Anthropic's form."""
        return anthropic_error(error)

    def error_event(self, error: GatewayError, sent: bytes = b"") -> bytes:
        """An event of the type that these streams have."""
        return f"event: error\ndata: {json.dumps(self.error(error))}\n\n".encode()

    def turns(self, fields: dict[str, Any]) -> Iterator[Turn]:
        """The conversation; a user's message that holds nothing but results of tools is a tool's."""
        for role, content in super().turns(fields):
            parts = list(_dicts(content))
            results = bool(parts) and all(part.get("type") == "tool_result" for part in parts)
            yield ("tool" if results else role), content

    def _without_thoughts(self, text: str) -> tuple[str, int]:
        """A message without blocks of thought, which are signed."""
        message = Body(text.encode())
        content = message.fields.get("content")
        if not isinstance(content, list):
            return text, 0
        parts = zip(elements(message.raw("content")), content, strict=True)
        kept = [part for part, value in parts if _type_of(value) not in ("thinking", "redacted_thinking")]
        dropped = len(content) - len(kept)
        if not dropped:
            return text, 0
        return message.with_changes({"content": joined(kept)}).decode() if kept else "", dropped

    def wants_json(self, fields: dict[str, Any]) -> bool:
        """Whether the answer must be JSON of a schema."""
        return self.format(fields) is not None

    def format(self, fields: dict[str, Any]) -> dict[str, Any] | None:
        """The format that the answer must have: within `output_config`, or in the older field of its own."""
        config = fields.get("output_config")
        formats = config.get("format") if isinstance(config, dict) else None, fields.get("output_format")
        return next(_dicts(list(formats)), None)

    def wants_logprobs(self, fields: dict[str, Any]) -> bool:
        """Never: this API has none."""
        return False

    def with_defaults(self, body: Body, generation: dict[str, Any]) -> dict[str, str | None]:
        """The changes that add an expert's generation defaults; the texts that end an answer are a list here."""
        if isinstance(generation.get("stop_strings"), str):
            generation = {**generation, "stop_strings": [generation["stop_strings"]]}
        return super().with_defaults(body, generation)

    def with_system_prompt(self, body: Body, prompt: str) -> dict[str, str | None]:
        """The change that gives a system prompt where there is none."""
        return {} if body.fields.get("system") is not None else {"system": json.dumps(prompt)}


CHAT, COMPLETIONS, RESPONSES, MESSAGES = Api(), Completions(), Responses(), Messages()


def _tokens(characters: int, size: int) -> int:
    """Tokens of a text by its characters and bytes: 4 characters of English for one, 3.2 of Russian, 2.7 of Chinese.
    Most tokenizers make more of them, none of those that were tried makes less than 0.8 times as many.
    """
    return (3 * characters + size) // 16


def _measured(said: list[Any]) -> tuple[int, int, bool]:
    """Characters of all text in some contents, its bytes in UTF-8, and whether there is something to see."""
    characters = size = 0
    images = False
    given: list[Any] = []  # to tools, in which no part is one of a message
    for contents in (said, given):
        while contents:
            value = contents.pop()
            if isinstance(value, str):
                characters += len(value)
                size += len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
            elif isinstance(value, list):
                contents.extend(value)
            elif isinstance(value, dict) and contents is given:
                contents.extend(value.values())
            elif isinstance(value, dict):
                kind = value.get("type")
                images = images or is_image(value) or kind == "computer_screenshot"
                for key, inner in value.items():
                    if key == "input":
                        given.append(inner)
                    elif key not in _NO_TEXT or (key == "data" and kind == "text"):
                        contents.append(inner)
    return characters, size, images


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _type_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else None
