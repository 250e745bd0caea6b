"""What is read of a request: who is asked, the words to route on, what an expert must be able to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ir3de.pipeline_ir3de import ROUTING_OPTIONS
from ir3de.prompts_ir3de import text_of

from .apis import Api
from .body import Body
from .errors import GatewayError, no_model, short, wrong
from .limits import Limits

_OPTIONS = ("generate", *ROUTING_OPTIONS)  # that the field `ir3de` of a request may hold
ROUTER = "ir3de"  # the model that routes; the others are experts by name


class Needs(NamedTuple):
    """
    What an expert must be able to do for a request.

    Args:
        tools, tool_choice, images, json, logprobs (`bool`): whether it must; `tool_choice` that the answer is sure to
            call a tool.
        tokens (`int`): that its window must hold, those of the answer included where the request says how many.
        not_here ([`GatewayError`], *optional*): the refusal of what no expert on this machine can do of it.
    """

    tools: bool = False
    tool_choice: bool = False
    images: bool = False
    json: bool = False
    logprobs: bool = False
    tokens: int = 0
    not_here: GatewayError | None = None


class Ask(NamedTuple):
    """
    A request as the gateway reads it.

    Args:
        api ([`Api`]): its shape.
        body ([`Body`]): all of it.
        model (`str`): `"ir3de"`, or the expert that is asked by name.
        said (`list[str]`): the user's messages.
        options (`dict`): of routing.
        details (`bool`): whether the answer shall carry the route.
        generate (`bool`): whether an expert is asked; else the route is the answer.
        stream (`bool`): whether the answer shall come in pieces.
        needs ([`Needs`]): of an expert.
        characters (`int`): of the conversation and of its tools, as text.
        agent (`bool`): whether tools are part of the conversation.
        conversation (`str`): a name of an agent's conversation, the same at each of its turns.
        previous (`str`, *optional*): a name of the response that it goes on from.
    """

    api: Api
    body: Body
    model: str
    said: list[str]
    options: dict[str, Any]
    details: bool
    generate: bool
    stream: bool
    needs: Needs
    characters: int
    agent: bool
    conversation: str
    previous: str | None


def read_ask(
    api: Api, data: bytes, headers: Mapping[str, str], limits: Limits, known: Collection[str], caller: str
) -> Ask:
    """Reads a request.

    Args:
        api ([`Api`]): its shape.
        data (`bytes`): its body.
        headers (`Mapping[str, str]`): of HTTP.
        limits ([`Limits`]): what it may hold.
        known (`Collection[str]`): names that `model` may have.
        caller (`str`): whose it is.

    Raises:
        GatewayError: a field that is read is missing or malformed, or there is too much of something.
    """
    body = Body(data)
    fields = body.fields
    model = fields.get("model")
    if not isinstance(model, str):
        raise wrong("model", f"must be one of {', '.join(known)}", model)
    if model not in known:
        raise no_model(model, known)
    _check_sizes(api, fields, limits)
    options = _routing_options(fields)
    generate = options.pop("generate", True)
    if not isinstance(generate, bool):
        raise wrong("ir3de", "has a `generate` that must be true or false", generate)
    turns = list(api.turns(fields))
    contents = api.contents(body)
    tools = bool(fields.get("tools")) or bool(fields.get("functions"))
    agent = tools or any(role == "tool" for role, _ in turns)
    return Ask(
        api=api,
        body=body,
        model=model,
        said=[text_of(content) for role, content in turns if role == "user"],
        options=options,
        details=fields.get("ir3de") is not None,
        generate=generate,
        stream=fields.get("stream") is True,
        needs=Needs(
            tools=tools,
            tool_choice=tools and api.must_call(fields),
            images=contents.images,
            json=api.wants_json(fields),
            logprobs=api.wants_logprobs(fields),
            tokens=contents.tokens + api.new_tokens(fields),
        ),
        characters=contents.characters,
        agent=agent,
        conversation=_conversation(fields, headers, turns, caller) if agent else "",
        previous=response_key(caller, fields["previous_response_id"]) if fields.get("previous_response_id") else None,
    )


def response_key(caller: str, response: Any) -> str:
    """A name for a response that a server keeps, as [`Conversations`] remembers who made it."""
    return f"response {caller} {response}"


def _check_sizes(api: Api, fields: dict[str, Any], limits: Limits) -> None:
    given = fields.get(api.conversation)
    if given is None or given in ([], ""):
        if not any(map(fields.get, api.instead)):
            raise wrong(api.conversation, "is missing or empty: it holds what is asked", given)
    elif not isinstance(given, api.kinds):
        raise wrong(api.conversation, "must be a list" if str not in api.kinds else "must be a text or a list", given)
    if isinstance(given, list) and len(given) > limits.messages:
        message = f"`{api.conversation}` has {len(given):,} entries; at most {limits.messages:,} go."
        raise GatewayError(400, "too_long", message, api.conversation)
    tools = fields.get("tools")
    if isinstance(tools, list) and len(tools) > limits.tools:
        raise GatewayError(400, "too_many_tools", f"`tools` has {len(tools):,}; at most {limits.tools:,} go.", "tools")


def _routing_options(fields: dict[str, Any]) -> dict[str, Any]:
    options = fields.get("ir3de")
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise wrong("ir3de", f"may hold {', '.join(_OPTIONS)}", options)
    unknown = sorted(short(key) for key in options if key not in _OPTIONS)
    if unknown:
        raise GatewayError(
            400, "invalid_value", f"`ir3de` may hold {', '.join(_OPTIONS)}; got {', '.join(unknown)}.", "ir3de"
        )
    return dict(options)


def _conversation(fields: dict[str, Any], headers: Mapping[str, str], turns: list[tuple[str, Any]], caller: str) -> str:
    """A name for the conversation: the one that the client gives it, or what its first messages and its user are."""
    given = headers.get("x-session-id") or fields.get("prompt_cache_key")
    if not given:
        opening = next((place + 1 for place, (role, _) in enumerate(turns) if role == "user"), 1)
        given = [fields.get("user"), fields.get("system"), fields.get("instructions"), turns[:opening]]
    return hashlib.sha256(json.dumps([caller, given]).encode()).hexdigest()
