"""A request as an order to an expert on this machine: its chat, its tools, and the options of a generation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ir3de.images_ir3de import BadImage, image_part, picture_of
from ir3de.options_ir3de import COLD
from ir3de.prompts_ir3de import ROLES, Prompt, is_image, is_text, text_of
from ir3de.specs_ir3de import is_number

from .apis import COMPLETIONS, MESSAGES, RESPONSES
from .errors import GatewayError, wrong
from .limits import Limits
from .requests import Ask

Message = dict[str, Any]

_MOST_CHOICES = 8
_MOST_STOPS = 16
_MOST_BIAS = 100
_TOKEN = re.compile(r"[0-9]{1,9}")
# What cannot be done here is refused unless it asks for what happens anyway. Other unknown fields are ignored.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "functions": ([],),
    "modalities": (["text"],),
    "previous_response_id": (),
    "suffix": ("",),
    "background": (False,),
}
_NUMBERS = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 10),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}


class Order(NamedTuple):
    """
    What an expert on this machine is to generate.

    Args:
        prompt (`str | list[dict]`): text or chat.
        options (`dict`): of its text-generation pipeline.
        max_tokens (`int`, *optional*): of the answer, where the request says.
        choices (`int`): answers.
        stop (`list[str]`): what ends an answer before it.
        tools (`list[dict]`): that it may call.
        logprobs (`int`, *optional*): alternatives to each token whose log probabilities are told, beside its own.
        frequency_penalty, presence_penalty (`float`): of OpenAI's API.
        schema (`Any`): a JSON schema that the answer must follow; true for any object; None for text.
        field (`str`): of the request that the prompt was in.
    """

    prompt: Prompt
    options: dict[str, Any]
    max_tokens: int | None
    choices: int
    stop: list[str]
    tools: list[dict[str, Any]]
    logprobs: int | None
    frequency_penalty: float
    presence_penalty: float
    schema: Any
    field: str


def read_order(ask: Ask, limits: Limits) -> Order:
    """Reads a request that an expert on this machine is to answer.

    Args:
        ask ([`Ask`]): the request.
        limits ([`Limits`]): what it may ask for.

    Raises:
        GatewayError: a field is malformed, out of range, or asks for what cannot be done here.
    """
    fields = ask.body.fields
    for field, neutral in _NEUTRAL.items():
        value = fields.get(field)
        if value is not None and value not in neutral:
            raise wrong(field, "is not supported by an expert on this machine", value)
    prompt = _prompt(ask)
    _check_length(prompt, limits)
    penalties = [_number(fields, field) or 0.0 for field in ("frequency_penalty", "presence_penalty")]
    _flag(fields, "stream")
    return Order(
        prompt=prompt,
        options=_sampling(fields),
        max_tokens=_max_tokens(ask, limits),
        choices=_whole(fields, "n", 1, _MOST_CHOICES) or 1,
        stop=_stop(fields),
        tools=_tools(ask),
        logprobs=_logprobs(ask),
        frequency_penalty=penalties[0],
        presence_penalty=penalties[1],
        schema=_schema(ask),
        field=ask.api.conversation,
    )


# Prompts.


def _prompt(ask: Ask) -> Prompt:
    fields = ask.body.fields
    if ask.api is COMPLETIONS:
        if not isinstance(fields["prompt"], str):
            raise wrong("prompt", "must be text for an expert on this machine", fields["prompt"])
        return str(fields["prompt"])
    if ask.api is MESSAGES:
        chat = list(_of_anthropic(fields))
    elif ask.api is RESPONSES:
        chat = list(_of_responses(fields))
    else:
        chat = [_of_openai(message, index) for index, message in enumerate(_list(fields, "messages"))]
    _check_results(chat)
    return chat


def _of_openai(message: Any, index: int, field: str = "messages") -> Message:
    place = f"{field}[{index}]"
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise wrong(place, f"must be an object with a `content` and a `role` out of {', '.join(ROLES)}", message)
    if message["role"] == "tool":
        _refuse_images(message.get("content"), f"{place}.content")
    kept: Message = {"role": message["role"], "content": _content(message.get("content"), f"{place}.content", message)}
    if message.get("tool_calls"):
        if not isinstance(message["tool_calls"], list):
            raise wrong(f"{place}.tool_calls", "must be a list of calls", message["tool_calls"])
        kept["tool_calls"] = [_call(call, f"{place}.tool_calls") for call in message["tool_calls"]]
    for key in ("tool_call_id", "name", "reasoning_content"):
        if isinstance(message.get(key), str):
            kept[key] = message[key]
    return kept


def _content(content: Any, place: str, message: Message) -> str | list[Message]:
    """A content as text, or where it holds images as a list of parts."""
    if content is None and message.get("role") == "assistant":
        return ""
    parts = content if isinstance(content, list) else [content]
    if not any(map(is_image, parts)):
        return "\n".join(_text(part, place) for part in parts)
    return [_part(part, f"{place}[{index}]") for index, part in enumerate(parts)]


def _part(part: Any, place: str) -> Message:
    return _image(part, place) if is_image(part) else {"type": "text", "text": _text(part, place)}


def _text(part: Any, place: str) -> str:
    if not is_text(part):
        kind = part.get("type") if isinstance(part, dict) else part
        raise wrong(place, "must be text, or a list of parts of text and images, for an expert on this machine", kind)
    return text_of([part])


def _image(part: Message, place: str) -> Message:
    try:
        return image_part(picture_of(part, place))
    except BadImage as error:
        raise bad_image(error) from None


def bad_image(error: BadImage) -> GatewayError:
    """The refusal of an image that cannot be read."""
    return GatewayError(400, "invalid_image", str(error), error.place)


def _refuse_images(result: Any, place: str) -> None:
    """Raises GatewayError where a tool's result holds images: chat templates have no place for them there."""
    if isinstance(result, list) and any(map(is_image, result)):
        message = f"`{place}` is a tool's result with an image, which no expert on this machine takes:"
        raise GatewayError(400, "unsupported_value", f"{message} send it in a message of the user.", place)


def _call(call: Any, place: str) -> dict[str, Any]:
    """A call of a tool with its arguments read, as chat templates want them."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise wrong(place, "must be calls of functions", call)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise wrong(f"{place}.function.arguments", "must be JSON", arguments) from None
    return {"id": call.get("id"), "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _of_anthropic(fields: dict[str, Any]) -> Iterator[Message]:
    """The chat of Anthropic's messages."""
    if fields.get("system"):
        yield {"role": "system", "content": text_of(fields["system"])}
    for index, message in enumerate(_list(fields, "messages")):
        place = f"messages[{index}]"
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise wrong(place, "must be an object with a `content` and the `role` user or assistant", message)
        content = message.get("content")
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        said: list[Message] = []
        calls: list[dict[str, Any]] = []
        for number, block in enumerate(blocks):
            kind = block.get("type") if isinstance(block, dict) else None
            if (kind == "text" and isinstance(block.get("text"), str)) or is_image(block):
                said.append(_part(block, f"{place}.content[{number}]"))
            elif kind == "tool_use":
                function = {"name": block.get("name"), "arguments": block.get("input")}
                calls.append(_call({"id": block.get("id"), "function": function}, place))
            elif kind == "tool_result":
                result = block.get("content") or ""
                _refuse_images(result, f"{place}.content[{number}].content")
                yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text_of(result)}
            elif kind not in ("thinking", "redacted_thinking"):
                raise wrong(f"{place}.content", "must be text, images or tools for an expert on this machine", kind)
        if said or calls:
            kept = {"role": message["role"], "content": _content(said, place, message)}
            yield kept | ({"tool_calls": calls} if calls else {})


def _of_responses(fields: dict[str, Any]) -> Iterator[Message]:
    """The chat of a request for a response."""
    if fields.get("instructions"):
        yield {"role": "system", "content": str(fields["instructions"])}
    given = fields["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else _list(fields, "input")
    for index, item in enumerate(items):
        place = f"input[{index}]"
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            yield _of_openai({**item, "tool_calls": None}, index, "input")
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = _call({"id": item.get("call_id"), "function": function}, place)
            yield {"role": "assistant", "content": "", "tool_calls": [call]}
        elif kind == "function_call_output":
            _refuse_images(item.get("output"), f"{place}.output")
            yield {"role": "tool", "tool_call_id": item.get("call_id"), "content": text_of(item.get("output"))}
        elif kind != "reasoning":
            raise wrong(place, "must be a message or a call of a function for an expert on this machine", kind)


def _check_results(chat: list[Message]) -> None:
    """Raises GatewayError where a tool's result comes without a call of it."""
    called: set[Any] = set()
    for message in chat:
        called.update(call["id"] for call in message.get("tool_calls", ()))
        if message["role"] == "tool" and message.get("tool_call_id") not in called:
            raise wrong("messages", "has a tool's result without its call", message.get("tool_call_id"))


def _check_length(prompt: Prompt, limits: Limits) -> None:
    size = len(prompt) if isinstance(prompt, str) else sum(len(text_of(message["content"])) for message in prompt)
    if limits.characters is not None and size > limits.characters:
        message = f"The conversation has {size:,} characters; at most {limits.characters:,} go."
        raise GatewayError(400, "too_long", message, "messages")


# Options.


def _tools(ask: Ask) -> list[dict[str, Any]]:
    """The tools in the form that chat templates know; none where the request says that none may be called."""
    fields = ask.body.fields
    choice = fields.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind not in (None, "auto", "none"):
        raise wrong("tool_choice", "can only be 'auto' or 'none' for an expert on this machine", kind)
    if kind == "none":
        return []
    tools = []
    for tool in _list(fields, "tools") if fields.get("tools") else []:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or tool.get("type", "function") not in ("function", "custom"):
            raise wrong("tools", "must be functions for an expert on this machine", tool)
        schema = function.get("parameters") or function.get("input_schema") or {"type": "object", "properties": {}}
        about = {"name": name, "description": str(function.get("description") or ""), "parameters": schema}
        tools.append({"type": "function", "function": about})
    return tools


def _sampling(fields: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for field in ("temperature", "top_p", "min_p", "repetition_penalty"):
        value = _number(fields, field)
        if value is not None:
            options[field] = value
    top_k = _whole(fields, "top_k", 0, 10**6)
    if top_k is not None:
        options["top_k"] = top_k
    if options.get("temperature", 1) < COLD or options.get("top_p") == 0:
        options = {key: options[key] for key in ("repetition_penalty",) if key in options} | {"do_sample": False}
    elif options.keys() - {"repetition_penalty"}:
        options["do_sample"] = True
    bias = fields.get("logit_bias")
    if bias:
        options["sequence_bias"] = _bias(bias)
    seed = _whole(fields, "seed", 0, 2**32 - 1)
    return options if seed is None else {**options, "seed": seed}


def _bias(bias: Any) -> list[list[Any]]:
    if not isinstance(bias, dict) or not all(map(_TOKEN.fullmatch, bias)):
        raise wrong("logit_bias", "must map ids of tokens to numbers", bias)
    for value in bias.values():
        if not is_number(value) or not -_MOST_BIAS <= value <= _MOST_BIAS:
            raise wrong("logit_bias", f"must map ids of tokens to numbers from -{_MOST_BIAS} to {_MOST_BIAS}", value)
    return [[[int(token)], float(value)] for token, value in bias.items()]


def _max_tokens(ask: Ask, limits: Limits) -> int | None:
    for field in ask.api.length_fields:
        value = _whole(ask.body.fields, field, 1, limits.max_tokens)
        if value is not None:
            return value
    return None


def _stop(fields: dict[str, Any]) -> list[str]:
    stop = fields.get("stop", fields.get("stop_sequences"))
    strings = [stop] if isinstance(stop, str) else stop or []
    if (
        not isinstance(strings, list)
        or len(strings) > _MOST_STOPS
        or not all(isinstance(s, str) and s for s in strings)
    ):
        raise wrong("stop", f"must be a string, or a list of at most {_MOST_STOPS}", stop)
    return strings


def _logprobs(ask: Ask) -> int | None:
    fields = ask.body.fields
    if not ask.needs.logprobs:
        return None
    if ask.api is COMPLETIONS:
        return _whole(fields, "logprobs", 0, 20)
    return _whole(fields, "top_logprobs", 0, 20) or 0


def _schema(ask: Ask) -> Any:
    """The JSON schema that the answer must follow, true for any object, or None."""
    if not ask.needs.json:
        return None
    fields = ask.body.fields
    if ask.api is RESPONSES:
        given = fields["text"]["format"]
        schema = given.get("schema")
    elif ask.api is MESSAGES:
        given = MESSAGES.format(fields) or {}
        schema = given.get("schema")
    else:
        given = fields["response_format"]
        schema = (given.get("json_schema") or {}).get("schema") if given["type"] == "json_schema" else None
    if given.get("type") == "json_schema" and not isinstance(schema, dict):
        raise wrong("response_format", "must hold a JSON schema", schema)
    return True if schema is None else schema


# Fields.


def _list(fields: dict[str, Any], field: str) -> list[Any]:
    if not isinstance(fields[field], list):
        raise wrong(field, "must be a list", fields[field])
    return list(fields[field])


def _number(fields: dict[str, Any], field: str) -> float | None:
    value = fields.get(field)
    least, most = _NUMBERS[field]
    if value is None:
        return None
    if not is_number(value) or not least <= value <= most:
        raise wrong(field, f"must be a number from {least} to {most}", value)
    return float(value)


def _whole(fields: dict[str, Any], field: str, least: int, most: int) -> int | None:
    value = fields.get(field)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most):
        return value
    raise wrong(field, f"must be a whole number from {least} to {most:,}", value)


def _flag(fields: dict[str, Any], field: str) -> None:
    value = fields.get(field)
    if value is not None and not isinstance(value, bool):
        raise wrong(field, "must be true or false", value)
