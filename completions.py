"""OpenAI's chat completions as data: what a request may hold, and the shapes of answers, chunks and errors."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

from .prompts_ir3de import text_of
from .specs_ir3de import is_number

ROUTER = "ir3de"  # the model that routes; the others are experts by name
ROUTING_OPTIONS = (
    "variant",
    "num_votes",
    "experts",
    "top_n",
    "cost_weight",
    "min_score",
    "fallback_expert",
    "second_below",
    "route_on",
    "stickiness",
    "explain",
)
_DETAILS = ("expert", "score", "ranking", "fallback", "second_opinion", "support", "tokens")
# What cannot be done here is refused unless it is set to what happens anyway. Other unknown fields are ignored.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class Limits(NamedTuple):
    """
    What one request may take, and how many may be under way.

    Args:
        body (`int`): bytes of a request.
        messages (`int`): of a conversation.
        characters (`int`): of all its messages together.
        max_tokens (`int`): that may be asked for.
        default_tokens (`int`): that are generated where the request does not say.
        seconds (`int`): that an answer may take.
        at_once (`int`): answers that are made at the same time.
        waiting (`int`): requests that wait for their turn; further ones get status 429.
    """

    body: int = 1 << 20
    messages: int = 256
    characters: int = 100_000
    max_tokens: int = 1024
    default_tokens: int = 256
    seconds: int = 300
    at_once: int = 4
    waiting: int = 64


class RequestError(Exception):
    """
    A request that is refused, or that could not be served.

    Args:
        status (`int`): of HTTP.
        code (`str`): for programs.
        message (`str`): for people: what was expected, what came.
        param (`str`, *optional*): the field at fault.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 429 else "rate_limit_error" if status == 429 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Completion(NamedTuple):
    """
    A checked request.

    Args:
        messages (`list[dict]`): the conversation.
        options (`dict`): of the pipeline's call.
        max_tokens (`int`): of the answer.
        stop (`list[str]`): what ends it.
        stream (`bool`): in chunks.
        usage (`bool`): with a last chunk that counts tokens.
    """

    messages: list[dict[str, Any]]
    options: dict[str, Any]
    max_tokens: int
    stop: list[str]
    stream: bool
    usage: bool


def check_text(text: str, param: str, limit: int) -> str:
    """Returns text that is short enough and holds no control characters, else raises RequestError."""
    if len(text) > limit:
        raise RequestError(400, "too_long", f"`{param}` has {len(text):,} characters; at most {limit:,} go.", param)
    found = _CONTROL.search(text)
    if found:
        raise RequestError(
            400, "control_character", f"`{param}` holds the control character U+{ord(found[0]):04X}: remove it.", param
        )
    return text


def read_completion(body: bytes, limits: Limits, experts: Iterable[str]) -> Completion:
    """Checks the body of a request for a completion.

    Args:
        body (`bytes`): JSON.
        limits ([`Limits`]): what it may ask for.
        experts (`Iterable[str]`): names that `model` may have beside `"ir3de"`.

    Raises:
        RequestError: it is not JSON, or a field is missing, malformed or beyond the limits.
    """
    try:
        request = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise RequestError(400, "invalid_json", "The body is not valid JSON, or is nested too deeply.") from None
    if not isinstance(request, dict):
        raise _bad("body", "must be a JSON object", request)
    messages = _messages(request.get("messages"), limits)
    for field, neutral in _NEUTRAL.items():
        value = request.get(field)
        if value is not None and value not in neutral:
            raise RequestError(400, "unsupported_value", f"`{field}` cannot be {_short(value)} here.", field)
    asked = "max_completion_tokens" if request.get("max_completion_tokens") is not None else "max_tokens"
    max_tokens = _whole(request, asked, 1, limits.max_tokens)
    max_tokens = limits.default_tokens if max_tokens is None else max_tokens
    stream_options = request.get("stream_options") or {}
    return Completion(
        messages,
        {"max_new_tokens": max_tokens, "timeout": limits.seconds, **_sampling(request), **_routing(request, experts)},
        max_tokens,
        _stop(request.get("stop")),
        _flag(request, "stream"),
        isinstance(stream_options, dict) and _flag(stream_options, "include_usage"),
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are not JSON


def _messages(messages: Any, limits: Limits) -> list[dict[str, Any]]:
    """Messages whose content is text alone."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= limits.messages:
        size = f"{len(messages):,} messages" if isinstance(messages, list) else _short(messages)
        raise RequestError(
            400, "invalid_messages", f"`messages` must list 1 to {limits.messages} messages, got {size}.", "messages"
        )
    clean = []
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _bad(place, "must be an object with a `role` and a `content`", message)
        content = message.get("content")
        parts = [content] if isinstance(content, str) else content
        if not isinstance(parts, list) or not all(_is_text(part) for part in parts):
            raise _bad(f"{place}.content", "must be text, or a list of parts of type 'text'", content)
        clean.append({"role": message["role"], "content": text_of(content)})
    check_text("\n".join(message["role"] + message["content"] for message in clean), "messages", limits.characters)
    return clean


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _sampling(request: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for field, most in (("temperature", 2), ("top_p", 1)):
        value = request.get(field)
        if value is not None and not (is_number(value) and 0 <= value <= most):
            raise _bad(field, f"must be a number from 0 to {most}", value)
        if value is not None:
            options[field] = float(value)
    seed = _whole(request, "seed", 0, 2**32 - 1)
    if options.get("temperature") == 0 or options.get("top_p") == 0:
        options = {"do_sample": False}
    elif options:
        options["do_sample"] = True
    return options if seed is None else {**options, "seed": seed}


def _routing(request: dict[str, Any], experts: Iterable[str]) -> dict[str, Any]:
    """The options of the extra field `ir3de`, and the expert that `model` may name."""
    options = request.get("ir3de") or {}
    unknown = sorted(set(options) - set(ROUTING_OPTIONS)) if isinstance(options, dict) else [_short(options)]
    if unknown:
        raise RequestError(
            400, "invalid_value", f"`ir3de` may hold {', '.join(ROUTING_OPTIONS)}; got {', '.join(unknown)}.", "ir3de"
        )
    model, known = request.get("model"), [ROUTER, *experts]
    if not isinstance(model, str):
        raise _bad("model", f"must be one of {', '.join(known)}", model)
    if model not in known:
        raise no_model(model, known)
    return dict(options) if model == ROUTER else {**options, "experts": [model]}


def no_model(name: str, known: Iterable[str]) -> RequestError:
    """The error of a model that does not exist."""
    message = f"There is no model {_short(name)}; there are {', '.join(known)}."
    return RequestError(404, "model_not_found", message, "model")


def _stop(stop: Any) -> list[str]:
    strings = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(strings, list) or len(strings) > 4 or not all(isinstance(s, str) and s for s in strings):
        raise _bad("stop", "must be a string, or a list of at most 4", stop)
    return strings


def _whole(request: dict[str, Any], field: str, least: int, most: int) -> int | None:
    value = request.get(field)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most):
        return value
    raise _bad(field, f"must be a whole number from {least} to {most:,}", value)


def _flag(request: dict[str, Any], field: str) -> bool:
    value = request.get(field)
    if value is not None and not isinstance(value, bool):
        raise _bad(field, "must be true or false", value)
    return bool(value)


def _bad(param: str, expected: str, value: Any) -> RequestError:
    return RequestError(400, "invalid_value", f"`{param}` {expected}; got {_short(value)}.", param)


def _short(value: Any) -> str:
    """A value in an error: its beginning, as ASCII."""
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value):,}"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


# Answers.


class Answer:
    """
    The shapes of one answer: all carry the same id, and the expert's name as `model`.

    Args:
        route (`dict`): event of the pipeline's stream that names the expert.
    """

    def __init__(self, route: dict[str, Any]) -> None:
        self._common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": route["expert"]}
        self._details = {key: route[key] for key in _DETAILS if key in route}
        if "failures" in route:  # what they said may name folders of this machine
            self._details["failures"] = [{"expert": failure["expert"]} for failure in route["failures"]]

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        """A piece of a streamed answer; the first, which has the role, has the routing details too."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        details = {"ir3de": self._details} if "role" in delta else {}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice], **details}

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last chunk, where usage was asked for."""
        return {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def whole(self, text: str, finish: str, usage: dict[str, int]) -> dict[str, Any]:
        """An answer in one piece."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage,
            "ir3de": self._details,
        }
