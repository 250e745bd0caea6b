"""The conversation of a request as experts on this machine read it: a chat in the form of chat templates, or text."""

from __future__ import annotations

import json
from typing import Any

from ir3de.images_ir3de import BadImage, image_part, picture_of
from ir3de.prompts_ir3de import ROLES, Message, PlainText, Prompt, is_image, is_text, text_of

from .apis import COMPLETIONS, MESSAGES, RESPONSES, Api
from .errors import GatewayError, wrong
from .fields import Fields, unsupported


def read_prompt(api: Api, fields: Fields) -> Prompt:
    """The chat of a request, or of completions its text.

    Args:
        api ([`Api`]): the shape of the request.
        fields ([`Fields`]): of the request.

    Raises:
        GatewayError: it is malformed, or holds what no expert on this machine reads.
    """
    if api is COMPLETIONS:
        return _text_to_continue(fields)
    if api is MESSAGES:
        chat = _of_anthropic(fields)
    elif api is RESPONSES:
        chat = _of_responses(fields)
    else:
        chat = [_of_openai(message) for message in fields.objects("messages")]
    _check_results(chat, api)
    return chat


def _text_to_continue(fields: Fields) -> PlainText:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        [prompt] = prompt
    if isinstance(prompt, list):
        raise unsupported("prompt", "is one text", prompt)
    if not isinstance(prompt, str):
        raise fields.wrong("prompt", "must be text")
    return PlainText(prompt)


def _of_openai(message: Fields) -> Message:
    """A message of a chat, or of the input of a response."""
    role = message.text("role")
    for key in ("audio", "function_call"):
        if message.get(key) is not None:
            raise unsupported(message.place_of(key), "does not go", message.get(key))
    if role == "function":
        raise unsupported(message.place_of("role"), f"must be one of {', '.join(ROLES)}", role)
    if role not in ROLES:
        raise message.wrong("role", f"must be one of {', '.join(ROLES)}")
    place = message.place_of("content")
    content = message.get("content")
    if role == "tool":
        kept: Message = {"role": role, "content": _text_alone(content, place)}
    else:
        said = message.text("refusal") if content is None else content
        kept = {"role": role, "content": _content(said, place, role)}
    if calls := [_call(call.text("id"), _function(call)) for call in message.objects("tool_calls")]:
        kept["tool_calls"] = calls
    for key in ("tool_call_id", "name", "reasoning_content"):
        if message.text(key) is not None:
            kept[key] = message.text(key)
    return kept


def _of_anthropic(fields: Fields) -> list[Message]:
    """The chat of Anthropic's messages."""
    chat: list[Message] = []
    if fields.get("system"):
        chat.append({"role": "system", "content": _text_alone(fields.get("system"), "system")})
    for message in fields.objects("messages"):
        role = message.text("role")
        if role not in ("user", "assistant"):
            raise message.wrong("role", "must be user or assistant")
        if isinstance(message.get("content"), str):
            chat.append({"role": role, "content": message.get("content")})
            continue
        said: list[Message] = []
        calls: list[Message] = []
        for block in message.objects("content"):
            kind = block.text("type")
            if kind == "tool_use":
                calls.append(_call(block.text("id"), block, "input"))
            elif kind == "tool_result":
                result = _text_alone(block.get("content") or "", block.place_of("content"))
                chat.append({"role": "tool", "tool_call_id": block.text("tool_use_id"), "content": result})
            elif kind not in ("thinking", "redacted_thinking"):
                said.append(_part(block.values, block.place))
        if said or calls:
            # An assistant that calls may say nothing.
            kept: Message = {"role": role, "content": said if any(map(is_image, said)) else text_of(said)}
            chat.append(kept | ({"tool_calls": calls} if calls else {}))
    return chat


def _of_responses(fields: Fields) -> list[Message]:
    """The chat of a request for a response. Calls of tools belong to the message of the assistant before them."""
    chat: list[Message] = []
    if instructions := fields.text("instructions"):
        chat.append({"role": "system", "content": instructions})
    given = fields.get("input")
    if isinstance(given, str):
        return [*chat, {"role": "user", "content": given}]
    for item in fields.objects("input"):
        kind = item.text("type") or "message"
        if kind == "message":
            chat.append(_of_openai(item))
        elif kind == "function_call":
            if not chat or chat[-1]["role"] != "assistant":
                chat.append({"role": "assistant", "content": ""})
            chat[-1].setdefault("tool_calls", []).append(_call(item.text("call_id"), item))
        elif kind == "function_call_output":
            output = _text_alone(item.get("output"), item.place_of("output"))
            chat.append({"role": "tool", "tool_call_id": item.text("call_id"), "content": output})
        elif kind != "reasoning":
            raise unsupported(item.place, "must be a message or a call of a function", kind)
    return chat


# Contents.


def _content(content: Any, place: str, role: str) -> str | list[Message]:
    """A content as text, or where it holds images as a list of parts."""
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if not isinstance(content, list):
        raise wrong(place, "must be text or a list of parts", content)
    parts = [_part(part, f"{place}[{index}]") for index, part in enumerate(content)]
    return parts if any(map(is_image, parts)) else text_of(parts)


def _text_alone(content: Any, place: str) -> str:
    """The text of a content that may hold nothing else: chat templates have no place for images in it."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(place, "must be text or a list of parts", content)
    for index, part in enumerate(content):
        if is_image(part):
            raise unsupported(f"{place}[{index}]", "is an image where only text goes", part["type"])
    return text_of([_part(part, f"{place}[{index}]") for index, part in enumerate(content)])


def _part(part: Any, place: str) -> Message:
    """A part of a content: text or an image."""
    if is_image(part):
        return _image(part, place)
    if is_text(part):
        return {"type": "text", "text": text_of([part])}
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "text", "text": part["refusal"]}
    if not isinstance(kind, str) or kind.endswith("text"):
        raise wrong(place, "must be a part of text or an image", part)
    raise unsupported(place, "must be a part of text or an image", kind)


def _image(part: Message, place: str) -> Message:
    try:
        return image_part(picture_of(part, place))
    except BadImage as error:
        raise bad_image(error) from None


def bad_image(error: BadImage) -> GatewayError:
    """The refusal of an image that cannot be read."""
    return GatewayError(400, "invalid_image", str(error), error.place, elsewhere=error.elsewhere)


# Calls of tools.


def _function(call: Fields) -> Fields:
    if call.text("type") not in (None, "function"):
        raise unsupported(call.place, "must be a call of a function", call.get("type"))
    function = call.object("function")
    if function is None:
        raise call.wrong("function", "must be the function that is called")
    return function


def _call(id_: str | None, function: Fields, field: str = "arguments") -> Message:
    """A call of a tool with its arguments read, as chat templates want them."""
    name = function.text("name")
    if name is None:
        raise function.wrong("name", "must be the function's name")
    arguments = function.get(field) or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise function.wrong(field, "must be JSON") from None
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def _check_results(chat: list[Message], api: Api) -> None:
    """Raises GatewayError where a tool's result comes without a call of it."""
    called: set[str | None] = set()
    for message in chat:
        called.update(call["id"] for call in message.get("tool_calls", ()))
        if message["role"] == "tool" and message.get("tool_call_id") not in called:
            raise wrong(api.conversation, "has a tool's result without its call", message.get("tool_call_id"))
