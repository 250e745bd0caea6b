"""Tools and JSON of experts on this machine: what is read of an order, what is parsed of an answer, and its shapes."""

import json
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Literal, cast

import pydantic
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ir3de.gateway.apis import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Api
from ir3de.gateway.errors import GatewayError
from ir3de.gateway.generation import Piece, _Reader, can_call_tools
from ir3de.gateway.limits import Limits
from ir3de.gateway.orders import Order, read_order
from ir3de.gateway.requests import read_ask
from ir3de.gateway.settings import Settings
from ir3de.gateway.shapes import shape_of
from ir3de.scripts.bench.fuzz import Fuzz

from .gateway_world import LAW, world

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments.at }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "π"}}\n</tool_call>'


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, with the template of a model that calls tools."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({sign: index for index, sign in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|endoftext|>"]
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.chat_template = TEMPLATE
    return fast


TOKENIZER = byte_tokenizer()
SOURCE: Any = SimpleNamespace(tokenizer=TOKENIZER, config=SimpleNamespace(model_type="qwen2"))


def order(api: Api, **fields: Any) -> Order:
    """The order of a request."""
    body = {"model": "law", "messages": LAW, **fields}
    kept = {key: value for key, value in body.items() if value is not None}
    return read_order(read_ask(api, json.dumps(kept).encode(), {}, Limits(), ["law"], ""), Limits())


def read(text: str, asked: Order) -> list[Piece]:
    """The pieces of an answer that a model gives token by token."""
    pieces: list[Piece] = []
    reader = _Reader(SOURCE, asked, 0, pieces.append, None)
    chat = TOKENIZER.apply_chat_template(LAW, tokenize=False, add_generation_prompt=True)
    reader.put(torch.tensor([TOKENIZER(chat)["input_ids"]]))
    for token in TOKENIZER(text)["input_ids"]:
        reader.put(torch.tensor([token]))
    reader.end()
    return [*pieces, reader.ending(1000)]


def test_calls_are_found_in_an_answer_and_what_is_around_them_is_text() -> None:
    assert can_call_tools(SOURCE)
    pieces = read(f"<think>hm, hm</think>Let me look. {CALL}<|im_end|>", order(CHAT, tools=[{"function": TOOL}]))
    assert "".join(piece.text for piece in pieces if piece.kind == "reasoning") == "hm, hm"
    assert "".join(piece.text for piece in pieces if piece.kind == "text").strip() == "Let me look."
    [call] = [piece for piece in pieces if piece.kind == "call"]
    assert (call.name, json.loads(call.text)) == ("look", {"at": "π"})
    assert pieces[-1].finish == "tool_calls"
    assert pieces[-1].completion_tokens > 60


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        (CHAT, {"parallel_tool_calls": False}),
        (MESSAGES, {"max_tokens": 9, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
    ],
)
def test_an_answer_ends_with_its_first_call_where_there_may_be_one_alone(api: Api, fields: dict[str, Any]) -> None:
    text = f"Let me look. {CALL}\n{CALL} And again.<|im_end|>"
    tools = [TOOL | {"input_schema": TOOL["parameters"]}]
    alone, several = (read(text, order(api, tools=tools, **more)) for more in (fields, {"max_tokens": 9}))
    assert [piece.kind for piece in several].count("call") == 2
    assert [piece.kind for piece in alone][-2:] == ["call", "end"]
    assert [piece.kind for piece in alone].count("call") == 1
    assert "".join(piece.text for piece in alone if piece.kind == "text").strip() == "Let me look."


def test_a_call_that_is_cut_is_no_call() -> None:
    pieces = read(CALL[:40], order(CHAT, tools=[{"function": TOOL}]))
    assert [piece.kind for piece in pieces if piece.kind == "call"] == []
    assert pieces[-1].finish == "stop"


def shaped(api: Api, pieces: list[Piece], **fields: Any) -> dict[str, Any]:
    return shape_of(api, "law", fields).whole(pieces)


def streamed(api: Api, pieces: list[Piece], **fields: Any) -> list[dict[str, Any]]:
    shape = shape_of(api, "law", fields)
    events = [*shape.begin(), *(event for piece in pieces for event in shape.event(piece)), *shape.end()]
    for event in events:
        lines = shape.text(event).decode()
        assert lines.endswith("\n\n")
        assert json.loads(lines.split("data: ", 1)[1]) == event
    return events


def test_calls_in_the_shape_of_each_api() -> None:
    pieces = read(f"Let me look. {CALL}<|im_end|>", order(CHAT, tools=[{"function": TOOL}]))
    choice = shaped(CHAT, pieces)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"].strip() == "Let me look."
    [call] = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"at": "π"}
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed(CHAT, pieces)]
    [call] = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert (call["index"], call["function"]["name"]) == (0, "look")

    message = shaped(MESSAGES, pieces)
    assert [block["type"] for block in message["content"]] == ["text", "tool_use"]
    assert message["content"][1]["input"] == {"at": "π"}
    assert message["stop_reason"] == "tool_use"
    events = streamed(MESSAGES, pieces)
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["text", "tool_use"]
    assert sum(event["type"] == "content_block_stop" for event in events) == 2

    response = shaped(RESPONSES, pieces)
    assert [item["type"] for item in response["output"]] == ["message", "function_call"]
    assert response["status"] == "completed"
    events = streamed(RESPONSES, pieces)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", "function_call"]


@pytest.mark.parametrize("fields", [{}, {"parallel_tool_calls": True}, {"parallel_tool_calls": False}])
def test_a_response_says_whether_several_calls_may_come(fields: dict[str, Any]) -> None:
    expected = fields.get("parallel_tool_calls", True)
    assert shaped(RESPONSES, [Piece("end", finish="stop")], **fields)["parallel_tool_calls"] is expected


def test_calls_are_counted_in_each_of_several_answers() -> None:
    pieces = [Piece("call", "{}", choice, name="look") for choice in (0, 0, 1)]
    chunks = streamed(CHAT, [*pieces, Piece("end", finish="tool_calls"), Piece("end", choice=1, finish="tool_calls")])
    choices = [chunk["choices"][0] for chunk in chunks]
    calls = [(choice["index"], call["index"]) for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert calls == [(0, 0), (0, 1), (1, 0)]


def test_calls_at_once_are_one_message_in_responses_as_in_chats() -> None:
    calls = [{**CHAT_CALL, "id": f"c{index}"} for index in range(2)]
    results = [{**CHAT_RESULT, "tool_call_id": f"c{index}"} for index in range(2)]
    chat = order(CHAT, messages=[*LAW, {"role": "assistant", "content": "hm", "tool_calls": calls}, *results])
    given = [
        {"role": "user", "content": "the court and a judge"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "hm"}]},
        *({"type": "function_call", "call_id": call["id"], **call["function"]} for call in calls),
        *({"type": "function_call_output", "call_id": f"c{index}", "output": "3.14"} for index in range(2)),
    ]
    assert order(RESPONSES, messages=None, input=given).prompt == chat.prompt


def test_a_loop_of_tools_is_read_alike_in_each_shape() -> None:
    asks = "the court and a judge"
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "π"}'}}
    chat = order(
        CHAT,
        messages=[
            *LAW,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "3.14"},
        ],
        tools=[{"type": "function", "function": TOOL}],
    )
    use = {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "π"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "3.14"}]}
    messages = order(
        MESSAGES,
        messages=[*LAW, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}],
        tools=[{"name": "look", "description": "", "input_schema": TOOL["parameters"]}],
        max_tokens=9,
    )
    responses = order(
        RESPONSES,
        messages=None,
        input=[
            {"role": "user", "content": asks},
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "π"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "3.14"},
        ],
        tools=[{"type": "function", **TOOL}],
    )
    assert chat.prompt == messages.prompt == responses.prompt
    assert chat.tools == messages.tools == responses.tools == [{"type": "function", "function": TOOL}]
    text = TOKENIZER.apply_chat_template(cast(Any, chat.prompt), tools=cast(Any, chat.tools), tokenize=False)
    assert "π" in text
    assert "3.14" in text


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "web_search"}]},
        {"tools": True},
        {"tools": [{"function": TOOL}], "tool_choice": "required"},
        {"messages": [{"role": "assistant", "tool_calls": True}, {"role": "user", "content": "a"}]},
        {"tools": [{"function": TOOL}], "tool_choice": {"type": "function", "function": {"name": "look"}}},
        {"messages": [*LAW, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        {"messages": [*LAW, {"role": "assistant", "tool_calls": ["look"]}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
    ],
)
def test_tools_that_cannot_be_called_here_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(GatewayError) as refused:
        order(CHAT, **fields)
    assert refused.value.status == 400


@pytest.mark.parametrize("given", [True, 0.1, 10**30, {"a": 1}])
def test_an_input_that_is_neither_text_nor_a_list_is_refused(given: Any) -> None:
    with pytest.raises(GatewayError, match="input"):
        order(RESPONSES, messages=None, input=given)


def test_whatever_a_request_holds_it_is_an_order_or_refused() -> None:
    fuzz = Fuzz(seed=3)
    apis = {api.path: api for api in (CHAT, COMPLETIONS, RESPONSES, MESSAGES)}
    made = 0
    for _ in range(3000):
        api, data, headers = fuzz.request()
        with suppress(GatewayError):
            read_order(read_ask(apis[api], data, headers, Limits(), ("ir3de", "math"), ""), Limits())
            made += 1
    assert made > 500


WRONG: list[Any] = [
    *(None, True, 0, -1, 0.5, 1e308, 10**400, "", "x", "\ud800", "[" * 5000),
    *([], ["x"], [{}], [[]], [1], {}, {"a": 1}, {"type": []}, {"type": "json_schema", "json_schema": "x"}),
]
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "π"}'}}
CHAT_RESULT = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "3.14"}]}
SCHEMA = {"type": "object", "properties": {"years": {"type": "integer"}}}
SAMPLING: dict[str, Any] = {"temperature": 1, "top_p": 0.5, "stream": True, "n": 1, "tool_choice": "auto"}
MORE: dict[str, Any] = {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "frequency_penalty": 1, "seed": 1}
MORE |= {"presence_penalty": 1, "logit_bias": {"1": 5}, "stop": ["a"], "stream_options": {"include_usage": True}}
# A request of each API with every field that is read of it.
FULL: dict[Api, dict[str, Any]] = {
    CHAT: {
        **SAMPLING,
        **MORE,
        "messages": [
            {"role": "system", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "ann"},
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CHAT_CALL]},
            CHAT_RESULT,
        ],
        "tools": [{"type": "function", "function": TOOL}],
        "max_completion_tokens": 5,
        "max_tokens": 5,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "v", "schema": SCHEMA}},
    },
    COMPLETIONS: {**SAMPLING, **MORE, "prompt": "a", "max_tokens": 5, "logprobs": 2, "echo": False, "best_of": 1},
    RESPONSES: {
        **SAMPLING,
        "instructions": "a",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "π"}'},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "3.14"}]},
        ],
        "tools": [{"type": "function", **TOOL}],
        "max_output_tokens": 5,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "text": {"format": {"type": "json_schema", "name": "v", "schema": SCHEMA}},
        "background": False,
        "metadata": {"a": "b"},
    },
    MESSAGES: {
        **SAMPLING,
        "system": [{"type": "text", "text": "a"}],
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "π"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "3.14"}]},
        ],
        "tools": [{"name": "look", "description": "", "input_schema": TOOL["parameters"]}],
        "tool_choice": {"type": "auto"},
        "max_tokens": 5,
        "top_k": 3,
        "stop_sequences": ["a"],
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        "mcp_servers": [],
    },
}
APIS = pytest.mark.parametrize("api", FULL, ids=lambda api: api.path)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*path, key)
        yield from places(each, (*path, key))


@APIS
def test_a_field_of_any_wrong_kind_is_refused_or_without_effect(api: Api) -> None:
    answer = [Piece("text", "a", logprobs=[]), Piece("call", "{}", name="look"), Piece("end", finish="stop")]
    made = 0
    assert order(api, **{"messages": None, **FULL[api]}).max_tokens == 5
    for path in places(FULL[api]):
        for value in WRONG:
            fields = json.loads(json.dumps({"model": "law", **FULL[api]}))
            holder = fields
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = value
            with suppress(GatewayError):
                read_order(read_ask(api, json.dumps(fields).encode(), {}, Limits(), ["law"], ""), Limits())
                shape_of(api, "law", fields).whole(answer)
                streamed(api, answer, **fields)
                made += 1
    assert made > 50


@APIS
@pytest.mark.parametrize(
    ("field", "value", "is_malformed"),
    [
        ("stream_options", "x", True),
        ("stream_options", {"include_usage": 1}, True),
        ("seed", "x", True),
        ("seed", -1, False),
        ("seed", 2**40, False),
        ("temperature", -1, True),
        ("temperature", 9, False),
        ("max_tokens", 10**6, False),
        ("guided_regex", "[a-z]+", False),
        ("guided_json", {"type": "object"}, False),
        ("n", 9, False),
    ],
)
def test_what_is_wrong_is_told_from_what_only_others_can(api: Api, field: str, value: Any, is_malformed: bool) -> None:
    field = api.length_fields[0] if field == "max_tokens" else field
    with pytest.raises(GatewayError) as refused:
        order(api, **{"messages": None, **FULL[api], field: value})
    assert (refused.value.param or "").split(".")[0] == field
    assert refused.value.elsewhere is not is_malformed
    assert refused.value.code == ("invalid_value" if is_malformed else "unsupported_value")


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        (CHAT, {"messages": [*LAW, {"role": "assistant", "tool_calls": [{**CHAT_CALL, "id": {}}]}]}),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": "x"}}),
        (MESSAGES, {"system": 5}),
        (MESSAGES, {"messages": [*LAW, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": {}}]}]}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": "x"}}}),
        (RESPONSES, {"input": [{"type": "function_call", "call_id": {}, "name": "look", "arguments": "{}"}]}),
        (RESPONSES, {"instructions": ["x"]}),
    ],
)
def test_what_is_malformed_within_a_request_is_refused(api: Api, fields: dict[str, Any]) -> None:
    with pytest.raises(GatewayError) as refused:
        order(api, **{"messages": None, **FULL[api], **fields})
    assert refused.value.code == "invalid_value"
    assert (refused.value.param or "").startswith(next(iter(fields)))


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        (CHAT, {"web_search_options": {}}),
        (CHAT, {"functions": [TOOL]}),
        (CHAT, {"moderation": {}}),
        (CHAT, {"messages": [*LAW, {"role": "assistant", "content": None, "function_call": CHAT_CALL["function"]}]}),
        (CHAT, {"messages": [*LAW, {"role": "function", "name": "look", "content": "x"}]}),
        (CHAT, {"messages": [*LAW, {"role": "assistant", "content": None, "audio": {"id": "a"}}]}),
        (CHAT, {"response_format": {"type": "structural_tag"}}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}),
        (COMPLETIONS, {"prompt": ["a", "b"]}),
        (COMPLETIONS, {"prompt": [1, 2]}),
        (COMPLETIONS, {"echo": True}),
        (RESPONSES, {"background": True}),
        (RESPONSES, {"conversation": "conv_1"}),
        (RESPONSES, {"prompt": {"id": "p"}}),
        (RESPONSES, {"tools": [{"type": "web_search"}]}),
        (RESPONSES, {"tools": [{"type": "custom", "name": "look"}]}),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "x"}]}),
        (RESPONSES, {"top_logprobs": 25}),
        (MESSAGES, {"container": "x"}),
        (MESSAGES, {"mcp_servers": [{"url": "x"}]}),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}),
        (MESSAGES, {"tools": [{"type": "bash_20250124", "name": "bash"}]}),
    ],
)
def test_what_only_servers_can_is_known(api: Api, fields: dict[str, Any]) -> None:
    with pytest.raises(GatewayError) as refused:
        order(api, **{"messages": None, **FULL[api], **fields})
    assert refused.value.elsewhere


@pytest.mark.parametrize("said", [{"refusal": "no"}, {"content": [{"type": "refusal", "refusal": "no"}]}])
def test_a_refusal_is_what_the_assistant_said(said: dict[str, Any]) -> None:
    assert order(CHAT, messages=[*LAW, {"role": "assistant", **said}]).prompt[1] == {
        "role": "assistant",
        "content": "no",
    }


def test_a_list_of_one_text_is_that_text() -> None:
    assert order(COMPLETIONS, messages=None, prompt=["a"]).prompt == "a"


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_a_schema_is_read_in_the_newer_and_the_older_field_of_messages(field: str) -> None:
    given = {"type": "json_schema", "schema": SCHEMA}
    fields = {field: {"format": given} if field == "output_config" else given}
    assert order(MESSAGES, max_tokens=9, **fields).schema == SCHEMA


def test_a_temperature_of_next_to_nothing_is_none() -> None:
    assert order(CHAT, temperature=5e-324).options == {"do_sample": False}


def test_no_tool_is_offered_where_none_may_be_called() -> None:
    assert order(CHAT, tools=[{"function": TOOL}], tool_choice="none").tools == []


@pytest.fixture(scope="module")
def bytes_expert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of bytes with random weights; returns its folder."""
    folder = tmp_path_factory.mktemp("bytes")
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER) + 5,  # more rows than tokens, as many models have
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def test_json_of_a_schema(bytes_expert: str) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"verdict": {"enum": ["guilty", "innocent"]}, "years": {"type": "integer", "maximum": 99}},
        "required": ["verdict", "years"],
        "additionalProperties": False,
    }
    with world({"law": {"model": bytes_expert}}, Settings(), names=()) as made:
        wanted = {"type": "json_schema", "json_schema": {"name": "v", "schema": schema}}
        for seed in range(3):
            answered = made.ask(response_format=wanted, max_tokens=200, temperature=1, seed=seed)
            choice = answered.json["choices"][0]
            verdict = json.loads(choice["message"]["content"])
            assert verdict["verdict"] in ("guilty", "innocent")
            assert isinstance(verdict["years"], int)
            assert choice["finish_reason"] == "stop"
        text = {"format": {"type": "json_schema", "name": "v", "schema": schema}}
        answered = made.ask(
            "responses", messages=None, input="the court", text=text, max_output_tokens=200, model="law"
        )
        assert json.loads(answered.json["output"][0]["content"][0]["text"])["verdict"] in ("guilty", "innocent")
        bad = {"type": "json_schema", "json_schema": {"name": "v", "schema": {"type": "nonsense"}}}
        refused = made.ask(response_format=bad)
        assert (refused.status, "schema" in refused.json["error"]["message"]) == (400, True)


def test_anthropics_client_parses_an_answer_of_an_expert_here(bytes_expert: str) -> None:
    pytest.importorskip("llguidance")
    anthropic = pytest.importorskip("anthropic", reason="the package anthropic is not installed")

    class Verdict(pydantic.BaseModel):
        """A schema that an answer is parsed with."""

        verdict: Literal["guilty", "innocent"]
        is_final: bool

    with world({"law": {"model": bytes_expert}}, Settings(), names=()) as made:
        client = anthropic.Anthropic(base_url=made.url.removesuffix("/v1"), api_key="none", max_retries=0)
        asked: dict[str, Any] = {"model": "ir3de", "max_tokens": 200, "messages": LAW, "output_format": Verdict}
        parsed = client.messages.parse(**asked).parsed_output
        assert isinstance(parsed, Verdict)


def test_log_probabilities_of_bytes_are_all_there(bytes_expert: str) -> None:
    """Several tokens make one character, and some of them no text of their own."""
    with world({"law": {"model": bytes_expert}}, Settings(), names=()) as made:
        for seed in range(3):
            answer = made.ask(max_tokens=40, temperature=1, seed=seed, logprobs=True, stop=["\n"]).json
            choice = answer["choices"][0]
            unseen = choice["finish_reason"] == "stop"  # what ended it is no part of the answer
            assert len(choice["logprobs"]["content"]) == answer["usage"]["completion_tokens"] - unseen


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_turns_out_to_be_too_much_is_refused_and_counts_for_no_failure(
    bytes_expert: str, stream: bool
) -> None:
    """It is found when the answer has begun, and would end it without a word."""
    pytest.importorskip("llguidance")
    many = {"type": "object", "properties": {f"p{index}": {"type": "string"} for index in range(3000)}}
    both = {"enum": ["a " * 20]} if stream else {"enum": [1]}
    schema = {"type": "object", "properties": {"first": both, "then": many}, "required": ["first", "then"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "v", "schema": {**schema, "additionalProperties": False}}}
    with world({"law": {"model": bytes_expert}}, Settings(), names=()) as made:
        for _ in range(6):
            answered = made.ask(response_format=wanted, max_tokens=200, stream=stream)
            told = answered.json if not stream else json.loads(answered.body.decode().rsplit("data: ", 1)[1])
            assert (answered.status, told["error"]["code"]) == (200 if stream else 400, "invalid_value")
            assert "schema cannot be followed" in told["error"]["message"]
        assert not stream or b'"content":"a ' in answered.body
        assert made.ask(max_tokens=1).status == 200
