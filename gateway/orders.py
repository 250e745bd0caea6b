"""A request as an order to an expert on this machine: its prompt, its tools, and the options of a generation."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ir3de.options_ir3de import COLD, MOST_SEED
from ir3de.prompts_ir3de import Prompt, text_of

from .apis import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Api
from .chats import read_prompt
from .errors import GatewayError, wrong
from .fields import Fields, unsupported
from .limits import Limits
from .requests import Ask

_MOST_CHOICES = 8
_MOST_STOPS = 16
_MOST_TOP = 20  # log probabilities of a token
_MOST_BIAS = 100
_TOKEN = re.compile(r"[0-9]{1,9}")
_LOGPROBS = "message.output_text.logprobs"
_NUMBERS = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 10),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}
# Known fields that would change an answer in ways that nobody here can, with the values that ask for nothing else than
# what happens anyway. Of the others docs/gateway.md says that they are ignored.
_BY_SERVERS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"), ()),
    **dict.fromkeys(("structural_tag", "json_schema", "grammar", "regex", "ebnf", "chat_template"), ()),
    **dict.fromkeys(("allowed_token_ids", "prompt_logprobs"), ()),
    **dict.fromkeys(("bad_words", "documents", "logits_processors", "stop_token_ids"), ([],)),
    **dict.fromkeys(("continue_final_message", "ignore_eos", "use_beam_search"), (False,)),
    "add_generation_prompt": (True,),
    "chat_template_kwargs": ({},),
    "min_tokens": (0,),
}
_BEYOND: dict[Api, dict[str, tuple[Any, ...]]] = {
    CHAT: {
        **_BY_SERVERS,
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "web_search_options": (),
    },
    COMPLETIONS: {**_BY_SERVERS, "best_of": (1,), "echo": (False,), "suffix": ("",)},
    RESPONSES: {
        **_BY_SERVERS,
        "background": (False,),
        "conversation": (),
        "moderation": (),
        "n": (1,),
        "previous_response_id": (),
        "prompt": (),
    },
    MESSAGES: {**_BY_SERVERS, "compaction": (), "container": (), "mcp_servers": ([],), "n": (1,), "thread": ()},
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
        one_call (`bool`): whether an answer ends with its first call of one.
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
    one_call: bool
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
        GatewayError: a field is malformed, or asks for what cannot be done here (`elsewhere` is true then).
    """
    api, fields = ask.api, Fields(ask.body.fields)
    for field, neutral in _BEYOND[api].items():
        value = fields.get(field)
        if value is not None and value not in neutral:
            raise unsupported(field, "does not go", value)
    prompt = read_prompt(api, fields)
    _check_length(prompt, api, limits)
    _check_stream(fields)
    return Order(
        prompt=prompt,
        options=_sampling(fields),
        max_tokens=_max_tokens(api, fields, limits),
        choices=fields.whole("n", 1, _MOST_CHOICES) or 1,
        stop=_stop(fields),
        tools=_tools(api, fields),
        one_call=_one_call(fields),
        logprobs=_logprobs(api, fields),
        frequency_penalty=_number(fields, "frequency_penalty") or 0.0,
        presence_penalty=_number(fields, "presence_penalty") or 0.0,
        schema=_schema(api, fields),
        field=api.conversation,
    )


def not_here(ask: Ask, limits: Limits) -> GatewayError | None:
    """The refusal of what no expert on this machine can do of a request; None where they can, or where it is
    malformed, as the one that is asked says.

    Args:
        ask ([`Ask`]): the request.
        limits ([`Limits`]): what it may ask for.
    """
    try:
        read_order(ask, limits)
    except GatewayError as error:
        return error if error.elsewhere else None
    return None


def _check_length(prompt: Prompt, api: Api, limits: Limits) -> None:
    size = len(prompt) if isinstance(prompt, str) else sum(len(text_of(message["content"])) for message in prompt)
    if limits.characters is not None and size > limits.characters:
        message = f"The conversation has {size:,} characters; at most {limits.characters:,} go."
        raise GatewayError(400, "too_long", message, api.conversation, elsewhere=True)


def _check_stream(fields: Fields) -> None:
    fields.flag("stream")
    if (options := fields.object("stream_options")) is not None:
        options.flag("include_usage")


def _tools(api: Api, fields: Fields) -> list[dict[str, Any]]:
    """The tools in the form that chat templates know; none where the request says that none may be called."""
    choice = fields.get("tool_choice")
    kind = fields.text("tool_choice") if not isinstance(choice, dict) else Fields(choice, "tool_choice").text("type")
    if kind not in (None, "auto", "none"):
        raise unsupported("tool_choice", "can only be 'auto' or 'none'", kind)
    tools = [_tool(api, tool) for tool in fields.objects("tools")]
    return [] if kind == "none" else tools


def _one_call(fields: Fields) -> bool:
    """Whether several calls of tools in one answer are ruled out, in the words of either API."""
    choice = fields.get("tool_choice")
    of_choice = isinstance(choice, dict) and Fields(choice, "tool_choice").flag("disable_parallel_tool_use")
    return of_choice or not fields.flag("parallel_tool_calls", default=True)


def _tool(api: Api, tool: Fields) -> dict[str, Any]:
    if tool.text("type") not in (None, "custom" if api is MESSAGES else "function"):
        raise unsupported(tool.place, "must be a function", tool.get("type"))
    function = tool.object("function") or tool
    name = function.text("name")
    if name is None:
        raise function.wrong("name", "must be the function's name")
    schema = function.object("parameters") or function.object("input_schema")
    parameters = schema.values if schema else {"type": "object", "properties": {}}
    about = {"name": name, "description": function.text("description") or "", "parameters": parameters}
    return {"type": "function", "function": about}


def _sampling(fields: Fields) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for field in ("temperature", "top_p", "min_p", "repetition_penalty"):
        value = _number(fields, field)
        if value is not None:
            options[field] = value
    top_k = fields.whole("top_k", -1, 10**6)
    if top_k is not None:
        options["top_k"] = top_k
    if options.get("temperature", 1) < COLD or options.get("top_p") == 0:
        options = {key: options[key] for key in ("repetition_penalty",) if key in options} | {"do_sample": False}
    elif options.keys() - {"repetition_penalty"}:
        options["do_sample"] = True
    if bias := fields.object("logit_bias"):
        options |= _bias(bias)
    seed = _seed(fields)
    return options if seed is None else {**options, "seed": seed}


def _seed(fields: Fields) -> int | None:
    seed = fields.get("seed")
    if isinstance(seed, int) and seed < 0:  # as -1, which asks some servers for one at random
        raise unsupported("seed", "begins at 0", seed)
    return fields.whole("seed", 0, MOST_SEED)


def _bias(bias: Fields) -> dict[str, Any]:
    if not all(map(_TOKEN.fullmatch, bias.values)):
        raise wrong(bias.place, "must map ids of tokens to numbers", bias.values)
    values = {token: bias.number(token, -_MOST_BIAS, _MOST_BIAS) for token in bias.values}
    made = [[[int(token)], value] for token, value in values.items() if value is not None]
    return {"sequence_bias": made} if made else {}


def _max_tokens(api: Api, fields: Fields, limits: Limits) -> int | None:
    asked = [fields.whole(field, 1, limits.max_tokens) for field in api.length_fields]
    return next((value for value in asked if value is not None), None)


def _stop(fields: Fields) -> list[str]:
    field = "stop" if fields.get("stop") is not None else "stop_sequences"
    strings = [fields.get(field)] if isinstance(fields.get(field), str) else fields.items(field)
    if not all(isinstance(each, str) and each for each in strings):
        raise fields.wrong(field, "must be a text, or a list of such")
    if len(strings) > _MOST_STOPS:
        raise unsupported(fields.place_of(field), f"may hold {_MOST_STOPS} texts", strings)
    return strings


def _logprobs(api: Api, fields: Fields) -> int | None:
    if api is MESSAGES:  # which has none
        return None
    if api is COMPLETIONS:
        return fields.whole("logprobs", 0, _MOST_TOP)
    top = fields.whole("top_logprobs", 0, _MOST_TOP)
    wanted = _LOGPROBS in fields.items("include") if api is RESPONSES else fields.flag("logprobs")
    return top or 0 if wanted or top else None


def _schema(api: Api, fields: Fields) -> Any:
    """The JSON schema that the answer must follow, true for any object, or None."""
    wanted = _format(api, fields)
    kind = wanted.text("type") if wanted else None
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return True
    if kind != "json_schema":
        raise unsupported(wanted.place_of("type"), "must be 'text', 'json_object' or 'json_schema'", kind)
    holder = wanted.object("json_schema") if api in (CHAT, COMPLETIONS) else wanted
    schema = holder.object("schema") if holder else None
    if schema is None:
        raise wanted.wrong("json_schema" if holder is None else "schema", "must hold a JSON schema")
    return schema.values


def _format(api: Api, fields: Fields) -> Fields | None:
    """The format that the answer must have, if the request says so."""
    if api is RESPONSES:
        text = fields.object("text")
        return text.object("format") if text else None
    if api is MESSAGES:  # within `output_config`, or in the older field of its own
        config = fields.object("output_config")
        return (config.object("format") if config else None) or fields.object("output_format")
    return fields.object("response_format")


def _number(fields: Fields, field: str) -> float | None:
    return fields.number(field, *_NUMBERS[field])
